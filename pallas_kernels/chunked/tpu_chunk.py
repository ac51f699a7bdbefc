"""One chunk between two states, and its gradient, inside a TPU kernel.

States are transposed, [V, K]: a decay by channel is then a row. The tokens of a
chunk write values u_j under keys k_j and are read by rows w_i x_i, of which
queries are one kind and the keys of the delta rule another:

  read_i = w_i x_i (prefix_i S) + sum over j < i of score_ij u_j
  S'     = last S + sum over j of (suffix_j k_j)^T u_j

Source: arXiv 2412.06464 eq. 8 and 9, 2312.06635 section 4.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.chunked.tpu_decay import apart


def wide(x):
  """In f32."""
  return x.astype(jnp.float32)


def from_state(decay, rows, weights, state_VK):
  """[C, V] for each of `rows`: what it reads of the state before the chunk."""
  lefts = [
    wide(x) * w * decay.prefix for x, w in zip(rows, weights, strict=True)
  ]
  reads = decay.products.nt(jnp.concatenate(lefts), state_VK)
  return apart(reads, len(rows))


def next_state(decay, k_CK, values_CV, state_VK):
  """The state after the chunk."""
  written = decay.products.tn(values_CV, wide(k_CK) * decay.suffix)
  return decay.last * state_VK + written


def pull_written(decay, k_CK, dstate_VK):
  """[C, V]: gradient of the values from that of the state after the chunk."""
  return decay.products.nt(wide(k_CK) * decay.suffix, dstate_VK)


def pull(decay, rows, weights, dreads, k_CK, values_CV, state_VK, dstate_VK):
  """Gradients that need no more than one chunk.

  Args:
    dreads: f32 [C, V] for each of `rows`.
    dstate_VK: of the state after the chunk.

  Returns:
    Those of w x for each of `rows`, of k, of the log decays, and of the state
    before the chunk.
  """
  products = decay.products
  dread = jnp.concatenate(dreads)
  dscores = apart(products.nt(dread, values_CV), len(rows))
  drows, dk_CK, dlog = decay.pull(rows, weights, k_CK, dscores)

  # 1. What is read of the state before.
  lefts = [wide(x) * w for x, w in zip(rows, weights, strict=True)]
  dlefts = apart(products.nn(dread, state_VK), len(rows))
  dlefts = [d * decay.prefix for d in dlefts]
  dprefix_CK = sum(x * d for x, d in zip(lefts, dlefts, strict=True))
  drows = [a + b for a, b in zip(drows, dlefts, strict=True)]
  read = jnp.concatenate([x * decay.prefix for x in lefts])
  dbefore_VK = decay.last * dstate_VK + products.tn(dread, read)

  # 2. What is written to the state after.
  dwritten_CK = products.nn(values_CV, dstate_VK) * decay.suffix
  dk_CK += dwritten_CK

  # 3. The decays that both go through; dlog is None where there are none.
  if dlog is not None:
    dlast_1K = (decay.last * dstate_VK * state_VK).sum(0, keepdims=True)
    dlog += decay.pull_ends(dprefix_CK, wide(k_CK) * dwritten_CK, dlast_1K)
  return drows, dk_CK, dlog, dbefore_VK


def own_score(q_CK, k_CK, scale):
  """[C, 1]: what a query gives to its own token, which nothing decays."""
  return scale * (wide(q_CK) * wide(k_CK)).sum(1, keepdims=True)


def pull_own(q_CK, k_CK, scale, dread_CV, values_CV):
  """Gradients of w q and of k from `own_score`."""
  d_C1 = (wide(dread_CV) * wide(values_CV)).sum(1, keepdims=True)
  return d_C1 * wide(k_CK), scale * d_C1 * wide(q_CK)


def begin(refs):
  """Before the first chunk: the state is `first`."""

  @pl.when(pl.program_id(2) == 0)
  def _():
    refs.state[...] = refs.first[...]


def end(refs):
  """After the last chunk: the state is `last`."""

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    refs.last[...] = refs.state[...]


def begin_back(refs):
  """Before the last chunk: the gradient of the states is `dlast`."""

  @pl.when((pl.program_id(2) == 0) & (pl.program_id(3) == 0))
  def _():
    refs.state[...] = refs.dlast[...]


def end_back(refs, dq_CK, dk_CK, dbefore_VK):
  """Stores the gradient of the state, and those of q and k.

  These are summed over the value heads that share a key head.
  """
  r, count = pl.program_id(3), pl.num_programs(3)
  refs.state[r] = dbefore_VK
  for total, out, d_CK in (
    (refs.dq_sum, refs.dq, dq_CK),
    (refs.dk_sum, refs.dk, dk_CK),
  ):
    total[...] = jnp.where(r == 0, 0, total[...]) + d_CK

    @pl.when(r == count - 1)
    def _(total=total, out=out):
      out[...] = total[...].astype(out.dtype)

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    refs.dfirst[r] = dbefore_VK
