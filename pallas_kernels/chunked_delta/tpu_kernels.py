"""Bodies of the delta rule's TPU kernels: one chunk of one value head each.

With L the scores of keys among keys, weighed by beta, the values written are
u = (I + L)^-1 (beta v - what beta k reads of the state). The inverse is grown
from that of single tokens to that of the chunk, block by block, and no power
of L is ever formed: powers overflow where keys repeat.

Source: arXiv 2412.06464 eq. 8 and 9; 2406.06484 section 3.2.
Differs: the inverse by halving, fused with the scores, and a gradient in closed
form that does not go through it: with u = (I + L)^-1 r, dr = (I + L)^-T du and
dL = -dr u^T.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.chunked import tpu_chunk, tpu_decay, tpu_masks
from pallas_kernels.chunked.tpu_chunk import wide


def inside(decay, q_CK, k_CK, beta_C1, scale):
  """Scores of queries [C, C], their own tokens included, and (I + L)^-1."""
  chunk = k_CK.shape[0]
  i, j = tpu_masks.row_column(chunk)
  own_C1 = tpu_chunk.own_score(q_CK, k_CK, scale)
  scores_CC = jnp.where(i == j, own_C1, 0)
  inverse_CC = (i == j).astype(jnp.float32)
  rows, weights = (q_CK, k_CK), (scale, beta_C1)
  nn = decay.products.nn
  for b, (score_CC, low_CC) in decay.scores(rows, weights, k_CK):
    scores_CC += score_CC
    if b > 1:  # before, the inverse is the identity
      low_CC = nn(nn(inverse_CC, low_CC), inverse_CC)
    inverse_CC -= low_CC
  return scores_CC, inverse_CC


def written(decay, inverse_CC, v_CV, beta_C1, read_CV):
  """The values u."""
  return decay.products.nn(inverse_CC, beta_C1 * wide(v_CV) - read_CV)


def inside_body(products, scale, refs):
  """Phase one: what needs no state, side by side in one block [C, 2C]."""
  decay, beta_C1 = _gates(products, refs)
  pair = inside(decay, refs.q[...], refs.k[...], beta_C1, scale)
  refs.pair[...] = jnp.concatenate(pair, axis=1)


def forward_body(products, scale, refs):
  """Phase two: from state to state, with results."""
  tpu_chunk.begin(refs)
  decay, beta_C1 = _gates(products, refs)
  q_CK, k_CK, state_VK = refs.q[...], refs.k[...], refs.state[...]
  scores_CC, inverse_CC = _pair(refs)
  y_CV, read_CV = tpu_chunk.from_state(
    decay, (q_CK, k_CK), (scale, beta_C1), state_VK
  )
  u_CV = written(decay, inverse_CC, refs.v[...], beta_C1, read_CV)
  y_CV += products.nn(scores_CC, u_CV)
  refs.y[...] = y_CV.astype(refs.y.dtype)
  refs.state[...] = tpu_chunk.next_state(decay, k_CK, u_CV, state_VK)
  tpu_chunk.end(refs)


def states_body(products, refs):
  """The state before each chunk."""
  tpu_chunk.begin(refs)
  decay, beta_C1 = _gates(products, refs)
  k_CK, state_VK = refs.k[...], refs.state[...]
  refs.before[...] = state_VK
  (read_CV,) = tpu_chunk.from_state(decay, (k_CK,), (beta_C1,), state_VK)
  u_CV = written(decay, _pair(refs)[1], refs.v[...], beta_C1, read_CV)
  refs.state[...] = tpu_chunk.next_state(decay, k_CK, u_CV, state_VK)


def backward_body(products, scale, refs):
  """From the gradient of a state to that of the one before, and all others."""
  tpu_chunk.begin_back(refs)
  decay, beta_C1 = _gates(products, refs)
  q_CK, k_CK, v_CV = refs.q[...], refs.k[...], refs.v[...]
  before_VK, dafter_VK = refs.before[...], refs.state[pl.program_id(3)]
  scores_CC, inverse_CC = _pair(refs)
  dy_CV = refs.dy[...]

  # 1. The values that were written, and their gradient.
  (read_CV,) = tpu_chunk.from_state(decay, (k_CK,), (beta_C1,), before_VK)
  u_CV = written(decay, inverse_CC, v_CV, beta_C1, read_CV)
  du_CV = products.tn(scores_CC, dy_CV)
  du_CV += tpu_chunk.pull_written(decay, k_CK, dafter_VK)
  dr_CV = products.tn(inverse_CC, du_CV)

  # 2. Queries read with gradient dy, keys with -dr.
  (dq_CK, dbk_CK), dk_CK, dlog, dbefore_VK = tpu_chunk.pull(
    decay,
    (q_CK, k_CK),
    (scale, beta_C1),
    (wide(dy_CV), -dr_CV),
    k_CK,
    u_CV,
    before_VK,
    dafter_VK,
  )
  more = tpu_chunk.pull_own(q_CK, k_CK, scale, dy_CV, u_CV)
  dq_CK = scale * (dq_CK + more[0])
  dk_CK += more[1] + beta_C1 * dbk_CK

  # 3. beta weighs both the values and the keys that read.
  dbeta_C1 = (dr_CV * wide(v_CV)).sum(1, keepdims=True)
  dbeta_C1 += (dbk_CK * wide(k_CK)).sum(1, keepdims=True)
  refs.dbeta[...] = tpu_masks.row(dbeta_C1)
  refs.dv[...] = (beta_C1 * dr_CV).astype(refs.dv.dtype)
  if dlog is not None:
    refs.dlog[...] = dlog
  tpu_chunk.end_back(refs, dq_CK, dk_CK, dbefore_VK)


def _gates(products, refs):
  return tpu_decay.read(products, refs), tpu_masks.column(refs.beta[...])


def _pair(refs):
  chunk = refs.pair.shape[0]
  return refs.pair[:, :chunk], refs.pair[:, chunk:]
