"""Causal attention within documents: checks, gradient, choice."""

from __future__ import annotations

import functools

import jax

from pallas_kernels.attention import cudnn_gpu, masked, splash_tpu
from pallas_kernels.choose import Entry, choose


def attention(
  q_BTHK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGV: jax.Array,
  positions_BT: jax.Array,
  segments_BT: jax.Array,
  *,
  window: int | None = None,
  scale: float | None = None,
  implementation: str | None = None,
) -> jax.Array:
  """softmax(scale q k) v over the tokens that each token sees.

  These are itself and those before it in its document, within the window.
  Source: 1706.03762 eq. 1, 2305.13245.

  Args:
    q_BTHK: [B, T, H, K], f32 or bf16.
    k_BTGK: [B, T, G, K], of the same tokens; G divides H, and query head h
      belongs to key head h // (H / G).
    v_BTGV: [B, T, G, V]; V may differ from K.
    positions_BT: int32, counting up from 0 in each document.
    segments_BT: int32, 1 and up for the documents of a row, each of which
      stands in one piece; 0 for padding.
    window: tokens that a token sees, itself included; None for all.
    scale: of the logits, None for K^-1/2.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'splash' (TPU), 'cudnn' (CUDA) or 'masked'.

  Returns:
    [B, T, H, V] in the dtype of q; logits and softmax are f32. At padding,
    which sees padding, the implementations differ.

  Raises:
    ValueError: shapes that do not fit together, or an unknown name.
    NotImplementedError: the named implementation does not take these
      arguments or does not run here.
  """
  _check(q_BTHK, k_BTGK, v_BTGV)
  options = window, scale, implementation
  return _attention(options, q_BTHK, k_BTGK, v_BTGV, positions_BT, segments_BT)


def _table(part, window, scale) -> dict[str, Entry]:
  """Best first; `part` is 'forward' or 'backward' of each module."""

  def bound(module):
    return functools.partial(getattr(module, part), window=window, scale=scale)

  return {
    'splash': Entry(
      bound(splash_tpu),
      platforms=('tpu',),
      refuses=splash_tpu.refuses,
      partitions=False,
    ),
    'cudnn': Entry(
      bound(cudnn_gpu),
      platforms=('cuda',),
      refuses=cudnn_gpu.refuses,
      partitions=False,
    ),
    'masked': Entry(bound(masked)),
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, *args):
  *static, implementation = options
  table = _table('forward', *static)
  return choose('attention', table, *args, implementation=implementation)


def _forward(options, *args):
  y = _attention(options, *args)
  return y, (*args, y)


def _backward(options, saved, dy):
  *static, implementation = options
  table = _table('backward', *static)
  grads = choose(
    'attention (backward)', table, *saved, dy, implementation=implementation
  )
  return (*grads, None, None)


_attention.defvjp(_forward, _backward)


def _check(q, k, v):
  heads, groups = q.shape[2], k.shape[2]
  fit = (
    q.shape[:2] == k.shape[:2]
    and k.shape[:3] == v.shape[:3]
    and q.shape[3] == k.shape[3]
  )
  if not fit or heads % groups:
    raise ValueError(
      f'queries {q.shape}, keys {k.shape} and values {v.shape} must be '
      '[B, T, H, K], [B, T, G, K] and [B, T, G, V] with G a divisor of H.'
    )
