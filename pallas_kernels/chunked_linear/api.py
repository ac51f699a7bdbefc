"""Linear attention with decay, in chunks: checks, choice of implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.chunked.inputs import (
  check_static,
  is_empty,
  prepare,
)
from pallas_kernels.chunked.vjp import Which, differentiable, table
from pallas_kernels.chunked_linear import (
  cpu,
  pallas_gpu,
  pallas_tpu,
  reference,
)

TABLE = table(pallas_tpu, pallas_gpu, cpu)


def chunked_linear(
  q_BTHK: jax.Array,
  k_BTHK: jax.Array,
  v_BTGV: jax.Array,
  log_decay: jax.Array | None,
  *,
  state_BGKV: jax.Array | None = None,
  starts_BT: jax.Array | None = None,
  scale: float | None = None,
  chunk: int | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Linear attention by a state that decays, for all tokens of a sequence.

    S_t = Diag(exp(log_decay_t)) S_{t-1} + k_t^T v_t
    y_t = scale q_t S_t

  With a decay per channel this is gated linear attention, with one per head
  the state-space dual of Mamba-2 or retention, with none plain linear
  attention. Value head g reads and writes with key head g // (G / H). All
  inputs but `starts_BT` get their gradients, from those of both results.
  Gates, states and sums are f32 throughout.

  Source: 2312.06635 eq. 3 and sec. 4 (per channel, in chunks); 2405.21060
  sec. 6 (per head); 2307.08621 eq. 7 (a constant per head).
  Differs: no exponent is above 0, whatever the gates; q and k are not
  normalised here.

  A token with a log decay of 0 and a k of 0 leaves the state alone: that is
  padding.

  Args:
    q_BTHK: [B, T, H, K], f32 or bf16, T of any length.
    k_BTHK: [B, T, H, K].
    v_BTGV: [B, T, G, V], G a multiple of H.
    log_decay: f32 [B, T, G] or [B, T, G, K], at most 0; or `None`.
    state_BGKV: f32 [B, G, K, V], before the first token; `None` is zeros.
    starts_BT: bool [B, T], where a document starts: what was before counts as
      zero, and the log decay of that token is without effect and gradient.
    scale: of the queries; `None` is K^-1/2.
    chunk: tokens that are worked on at once, a power of two; `None` takes what
      is best for the implementation.
    implementation: `None` chooses for the platform that the program is lowered
      for; else one of `TABLE`, or 'reference'.

  Returns:
    y [B, T, G, V] in the dtype of v, and the state after the last token, f32
    [B, G, K, V].

  Raises:
    ValueError: shapes or dtypes do not fit together, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  op = 'chunked_linear'
  check_static(op, chunk, implementation, (*TABLE, 'reference'))
  log_decay, state_BGKV = prepare(
    op, q_BTHK, k_BTHK, v_BTGV, log_decay, state_BGKV, starts_BT
  )
  if is_empty(q_BTHK, v_BTGV):
    return jnp.zeros_like(v_BTGV), state_BGKV
  scale = q_BTHK.shape[-1] ** -0.5 if scale is None else float(scale)
  args = (q_BTHK, k_BTHK, v_BTGV, log_decay, state_BGKV)
  if implementation == 'reference':
    return reference.chunked_linear(*args, scale=scale)
  static = (('scale', scale), ('chunk', chunk))
  which = Which(op, tuple(TABLE.items()), implementation, static)
  return differentiable(which, *args)
