"""The chunked delta rule and linear attention as Triton kernels.

Forward: (decays of channels into q and k), scores within chunks and their
inverse, then the states and outputs. Backward: the states again, their
gradients from last to first, those of the scores, those of the inputs.

Between the two, a value head keeps the scores and, with delta, their inverse:
C numbers for each token each, in the dtype of the inputs (256 bytes together in
bf16), next to the inputs. States and corrected values are computed again.

Source: arXiv 2412.06464 section 3.3 (one decay for each head), arXiv 2510.26692
section 3 (for each channel).
Differs: decays are summed in a tree over blocks, so no exponent is above 0; the
inverse is a ladder, see `gpu_scores.ladder`; W = X beta Kin is never formed.
"""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp

from pallas_kernels.chunked import gpu_gradients, gpu_scores, gpu_states
from pallas_kernels.chunked.gpu_parts import matrix
from pallas_kernels.chunked.gpu_sizes import MOST_CHANNELS, Sizes

# The gradient of beta is a sum over beta: one of 0 is taken for this.
_LEAST_BETA = 1e-20


def refuses(q, k, v, log_decay) -> str | None:
  """Why the kernels do not take these arguments, or `None`."""
  if not q.dtype == k.dtype == v.dtype or q.dtype not in (
    jnp.float32,
    jnp.bfloat16,
  ):
    return (
      'it takes q, k and v in float32 or in bfloat16, not '
      f'{q.dtype}, {k.dtype} and {v.dtype}'
    )
  if max(q.shape[-1], v.shape[-1]) > MOST_CHANNELS:
    return (
      f'it takes up to {MOST_CHANNELS} channels, not K={q.shape[-1]}, '
      f'V={v.shape[-1]}'
    )
  if q.shape[0] * q.shape[1] >= 2**31 - 2**16:
    return f'{q.shape[0]} x {q.shape[1]} tokens do not fit int32'
  return None


def run(q_BTHK, k_BTHK, v_BTGV, log_decay, beta_BTG, state_BGKV, scale, interpret=False):
  """-> y_BTGV, state_BGKV in f32. `beta_BTG=None` is linear attention."""
  kinds = {3: 'head', 4: 'channel'}
  sizes = Sizes(
    batch=q_BTHK.shape[0],
    tokens=q_BTHK.shape[1],
    heads=q_BTHK.shape[2],
    groups=v_BTGV.shape[2],
    k=q_BTHK.shape[3],
    v=v_BTGV.shape[3],
    dtype=jnp.dtype(v_BTGV.dtype),
    decay='none' if log_decay is None else kinds[log_decay.ndim],
    delta=beta_BTG is not None,
    scale=float(scale),
  )
  inputs = jax.tree.map(matrix, (q_BTHK, k_BTHK, v_BTGV, log_decay, beta_BTG))
  state = state_BGKV.astype(jnp.float32).reshape(-1, sizes.v)
  y, last = _chunks(sizes, interpret, *inputs, state)
  return y.reshape(v_BTGV.shape), last.reshape(state_BGKV.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunks(sizes, interpret, q, k, v, log, beta, state):
  """Of matrices, see `matrix`; state f32 [B G K, V]."""
  return _forward(sizes, interpret, q, k, v, log, beta, state)[0]


def _forward(sizes, interpret, q, k, v, log, beta, state):
  if sizes.delta:
    beta = jnp.where(jnp.abs(beta) < _LEAST_BETA, _LEAST_BETA, beta)
  scores = gpu_scores.scores(sizes, q, k, log, beta, interpret)
  found = gpu_states.forward(
    sizes,
    _factors(sizes, q, k, log, interpret),
    scores,
    v,
    beta,
    state,
    outputs=True,
    interpret=interpret,
  )
  return (found.y, found.last), (q, k, v, log, beta, state, scores)


def _backward(sizes, interpret, kept, cotangents):
  q, k, v, log, beta, state, scores = kept
  d_y, d_last = cotangents
  factors = _factors(sizes, q, k, log, interpret)
  again = gpu_states.forward(
    sizes, factors, scores, v, beta, state, outputs=False, interpret=interpret
  )
  new = again.new if sizes.delta else v
  back = gpu_states.backward(
    sizes, factors, scores, beta, d_y, d_last, interpret=interpret
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
  d_q, d_k = (_over_heads(sizes, d).astype(q.dtype) for d in (found.d_q, found.d_k))
  d_log = found.d_log.sum(0) if sizes.decay == 'head' else found.d_log
  d_v = of.d_v if sizes.delta else back.d_r
  return d_q, d_k, d_v, d_log, of.d_beta, back.d_first


_chunks.defvjp(_forward, _backward)


def _factors(sizes, q, k, log, interpret):
  """What the states meet, see `gpu_states`."""
  if sizes.decay == 'channel':
    found = gpu_scores.decayed(sizes, q, k, log, interpret)
    found.log = None
    return found
  return types.SimpleNamespace(q=q, k_in=k, k_out=None, whole=None, log=log)


def _over_heads(sizes, d):
  """Sums over the value heads that share a key."""
  if sizes.heads == sizes.groups:
    return d
  per_key = sizes.groups // sizes.heads
  d = d.reshape(-1, sizes.heads, per_key, sizes.k).sum(2)
  return d.reshape(-1, sizes.heads * sizes.k)
