"""Bodies of linear attention's TPU kernels: one chunk of one value head each.

Source: arXiv 2312.06635 section 4, 2405.21060 section 6.
Differs: the gradient of a log decay is a sum over the steps it decays, where
differences of sums over all later steps would lose digits.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.chunked import tpu_chunk, tpu_decay, tpu_masks
from pallas_kernels.chunked.tpu_chunk import wide


def forward_body(products, scale, refs):
  """From state to state, with results."""
  tpu_chunk.begin(refs)
  decay, state_VK = tpu_decay.read(products, refs), refs.state[...]
  q_CK, k_CK, v_CV = refs.q[...], refs.k[...], refs.v[...]
  (y_CV,) = tpu_chunk.from_state(decay, (q_CK,), (scale,), state_VK)
  y_CV += products.nn(_scores(decay, q_CK, k_CK, scale), v_CV)
  refs.y[...] = y_CV.astype(refs.y.dtype)
  refs.state[...] = tpu_chunk.next_state(decay, k_CK, v_CV, state_VK)
  tpu_chunk.end(refs)


def states_body(products, refs):
  """The state before each chunk."""
  tpu_chunk.begin(refs)
  decay, state_VK = tpu_decay.read(products, refs), refs.state[...]
  refs.before[...] = state_VK
  refs.state[...] = tpu_chunk.next_state(
    decay, refs.k[...], refs.v[...], state_VK
  )


def backward_body(products, scale, refs):
  """From the gradient of a state to that of the one before, and all others."""
  tpu_chunk.begin_back(refs)
  r = pl.program_id(3)
  decay = tpu_decay.read(products, refs)
  q_CK, k_CK, v_CV = refs.q[...], refs.k[...], refs.v[...]
  dy_CV, dafter_VK = refs.dy[...], refs.state[r]

  scores_CC = _scores(decay, q_CK, k_CK, scale)
  dv_CV = products.tn(scores_CC, dy_CV)
  dv_CV += tpu_chunk.pull_written(decay, k_CK, dafter_VK)
  refs.dv[...] = dv_CV.astype(refs.dv.dtype)

  (dq_CK,), dk_CK, dlog, dbefore_VK = tpu_chunk.pull(
    decay,
    (q_CK,),
    (scale,),
    (wide(dy_CV),),
    k_CK,
    v_CV,
    refs.before[...],
    dafter_VK,
  )
  more = tpu_chunk.pull_own(q_CK, k_CK, scale, dy_CV, v_CV)
  if dlog is not None:
    refs.dlog[...] = dlog
  tpu_chunk.end_back(
    refs, scale * (dq_CK + more[0]), dk_CK + more[1], dbefore_VK
  )


def _scores(decay, q_CK, k_CK, scale):
  i, j = tpu_masks.row_column(k_CK.shape[0])
  scores_CC = jnp.where(i == j, tpu_chunk.own_score(q_CK, k_CK, scale), 0)
  for _, (score_CC,) in decay.scores((q_CK,), (scale,), k_CK):
    scores_CC += score_CC
  return scores_CC
