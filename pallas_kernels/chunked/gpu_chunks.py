"""The chunked delta rule and linear attention as Triton kernels.

Forward: scores within chunks and their inverse, states from chunk to chunk,
outputs. Backward: the states again, their gradients from last to first, those
of the scores, those of the inputs. A decay for each channel is put into q and k
first; one for each head multiplies rows on the way.

Between the two, a value head keeps the scores and, with delta, their inverse,
C numbers each for each token: 512 bytes together in bf16 (two parts), 768 in
f32 (three), next to the inputs; without delta 128 and 384. States, corrected
values and decays are computed again.

Source: arXiv 2412.06464 section 3.3 (one decay for each head), 2510.26692
section 3 (for each channel).
Differs: decays are summed in a tree over blocks, so no exponent is above 0; the
inverse is a ladder, see `gpu_scores.ladder`; W = X beta Kin is never formed.
"""

from __future__ import annotations

import types
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.chunked import (
  gpu_gradients,
  gpu_outputs,
  gpu_scores,
  gpu_states,
)
from pallas_kernels.chunked.gpu_parts import matrix
from pallas_kernels.chunked.gpu_sizes import CHUNK, MOST_CHANNELS, Sizes

# The gradient of beta is a sum over beta: one of 0 is taken for this.
_LEAST_BETA = 1e-20


def refuses(q, k, v, *_, scale, chunk) -> str | None:
  """Why the kernels do not take these arguments, or `None`."""
  del scale
  if v.dtype not in (jnp.float32, jnp.bfloat16):
    return f'it takes float32 and bfloat16, not {v.dtype}'
  if chunk not in (None, CHUNK):
    return f'it works on {CHUNK} tokens at once, not chunk={chunk}'
  if max(q.shape[-1], v.shape[-1]) > MOST_CHANNELS:
    return (
      f'it takes up to {MOST_CHANNELS} channels, not K={k.shape[-1]} and '
      f'V={v.shape[-1]}'
    )
  # Rows are numbered in int32, of tokens and of states.
  tokens = v.shape[0] * v.shape[1]
  rows = max(tokens, tokens // CHUNK * v.shape[2] * k.shape[-1])
  if rows >= 2**31 - 2**16:
    return f'{rows} rows of tokens or of states do not fit int32'
  return None


def forward(q, k, v, log, beta, state, *, scale, interpret=False):
  """-> (y_BTGV, state_BGKV), what is kept; without `beta`, no delta."""
  sizes = _sizes(q, v, log, beta, scale)
  q, k, v_, log, beta = _matrices(q, k, v, log, beta)
  a, x = gpu_scores.scores(sizes, q, k, log, beta, interpret)
  q, keys = _meeting_states(sizes, q, k, log, interpret)
  first = state.reshape(-1, sizes.v)
  found = gpu_states.forward(sizes, keys, x, v_, beta, first, interpret)
  new = found.new if sizes.delta else v_
  y = gpu_outputs.outputs(sizes, q, keys.log, a, found.states, new, interpret)
  return (y.reshape(v.shape), found.last.reshape(state.shape)), (a, x)


def kept(q, v, beta) -> tuple[Any, Any]:
  """Shapes and dtypes of what `forward` keeps."""
  sizes = _sizes(q, v, None, beta, 1.0)
  each = jax.ShapeDtypeStruct(*sizes.fine(CHUNK))
  return each, each if sizes.delta else None


def backward(
  q, k, v, log, beta, state, kept, d_y, d_last, *, scale, interpret=False
):
  """-> gradients of q, k, v, log, beta and state; `None` for what is `None`."""
  sizes = _sizes(q, v, log, beta, scale)
  args, (a, x) = (q, k, v, log, beta, state), kept
  q, k, v, log, beta = _matrices(q, k, v, log, beta)
  d_y, d_last = matrix(d_y), d_last.reshape(-1, sizes.v)
  first = state.reshape(-1, sizes.v)
  q_in, keys = _meeting_states(sizes, q, k, log, interpret)
  again = gpu_states.forward(sizes, keys, x, v, beta, first, interpret)
  new = again.new if sizes.delta else v
  d_new = gpu_outputs.through_scores(sizes, a, d_y, interpret)
  back = gpu_states.backward(
    sizes, keys, q_in, x, beta, d_y, d_new, d_last, interpret
  )
  of = gpu_gradients.score_gradients(
    sizes, log, beta, d_y, back.d_r, new, interpret
  )
  found = gpu_gradients.input_gradients(
    sizes,
    *(q, k, log, again.states, back.d_states),
    *(new, d_y, of.d_v, of.d_a, of.d_m),
    interpret,
  )
  d_q, d_k = (_over_heads(sizes, d) for d in (found.d_q, found.d_k))
  d_log = found.d_log.sum(0) if sizes.decay == 'head' else found.d_log
  d_v = of.d_v if sizes.delta else back.d_r
  found = d_q, d_k, d_v, d_log, of.d_beta, back.d_first
  return tuple(
    None if arg is None else d.reshape(arg.shape).astype(arg.dtype)
    for arg, d in zip(args, found, strict=True)
  )


def _sizes(q, v, log, beta, scale) -> Sizes:
  kinds = {3: 'head', 4: 'channel'}
  return Sizes(
    *q.shape[:3],
    groups=v.shape[2],
    k=q.shape[3],
    v=v.shape[3],
    dtype=jnp.dtype(v.dtype),
    decay='none' if log is None else kinds[log.ndim],
    delta=beta is not None,
    scale=float(scale),
  )


def _matrices(q, k, v, log, beta):
  if beta is not None:
    beta = jnp.where(jnp.abs(beta) < _LEAST_BETA, _LEAST_BETA, beta)
  return jax.tree.map(matrix, (q, k, v, log, beta))


def _meeting_states(sizes, q, k, log, interpret):
  """q and k as they meet states, see `gpu_states`."""
  if sizes.decay == 'channel':
    q, keys = gpu_scores.decayed(sizes, q, k, log, interpret)
    return q, types.SimpleNamespace(**vars(keys), k=None, log=None)
  return q, types.SimpleNamespace(
    k=k, log=log, k_in=None, k_out=None, whole=None
  )


def _over_heads(sizes, d):
  """Sums over the value heads that share a key."""
  if sizes.heads == sizes.groups:
    return d
  per_key = sizes.groups // sizes.heads
  return d.reshape(-1, sizes.heads, per_key, sizes.k).sum(2)
