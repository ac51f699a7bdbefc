"""Load-balance losses: E * sum over experts of load share * mean probability.

All are 1 for a uniform router. Only the mean probability has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.routers import affinities
from moejax.types import Chosen, Context, Pairs


def load(
  assignment: Chosen | Pairs,
  ctx: Context,
  *,
  affinity: Callable = affinities.softmax,
) -> jax.Array:
  """Balance over all tokens of the call, whatever devices they are on.

  Source: 2101.03961 eq. 4 to 6, for k choices as in 2401.06066 eq. 12.

  Args:
    assignment: what the router chose.
    ctx: the context of the call.
    affinity: makes the probabilities from the logits; they are normalised.
  """
  share_E = _share(assignment.counts_E())
  prob_E = _mean(_probabilities(assignment, affinity), ctx.valid_N)
  return assignment.num_experts * jnp.sum(share_E * prob_E)


def per_sequence(
  assignment: Chosen | Pairs,
  ctx: Context,
  *,
  affinity: Callable = affinities.softmax,
) -> jax.Array:
  """The mean over the rows of the batch of each row's own balance.

  Source: 2412.19437 eq. 17 to 20.
  Differs: a row of the batch counts as a sequence, though packing may put
  several documents into it; rows that are all padding are left out.
  """
  batch, length = ctx.segments_BT.shape
  prob_NE = _probabilities(assignment, affinity)

  def one(counts_TE, prob_TE, valid_T):
    share_E = _share(counts_TE.sum(0))
    return assignment.num_experts * jnp.sum(share_E * _mean(prob_TE, valid_T))

  valid_BT = ctx.valid_N.reshape(batch, length)
  loss_B = jax.vmap(one)(
    assignment.counts_NE().reshape(batch, length, -1),
    prob_NE.reshape(batch, length, -1),
    valid_BT,
  )
  used_B = valid_BT.any(-1)
  mean = jnp.sum(loss_B * used_B) / jnp.maximum(used_B.sum(), 1)
  return mean if ctx.row_scale is None else ctx.row_scale * mean


class GlobalBatch(nn.Module):
  """Balance against the load of the whole batch of an optimiser step.

  With gradient accumulation a call sees one micro-batch; the load share is
  taken from all counts so far in this optimiser step, kept in the `balance`
  collection and cleared by `end_step`.  Source: 2501.11873 sec. 3.

  Attributes:
    affinity: makes the probabilities from the logits; they are normalised.
  """

  affinity: Callable = affinities.softmax

  @nn.compact
  def __call__(self, assignment: Chosen | Pairs, ctx: Context) -> jax.Array:
    counts = self.variable(
      'balance',
      'counts',
      jnp.zeros,
      (assignment.num_experts,),
      jnp.float32,
    )
    total_E = counts.value + assignment.counts_E()
    if self.is_mutable_collection('balance') and not self.is_initializing():
      counts.value = total_E
    prob_NE = _probabilities(assignment, self.affinity)
    prob_E = _mean(prob_NE, ctx.valid_N)
    return assignment.num_experts * jnp.sum(_share(total_E) * prob_E)


def _probabilities(assignment: Chosen | Pairs, affinity: Callable) -> jax.Array:
  affinity_NE = affinity(assignment.logits_NE)
  total = affinity_NE.sum(-1, keepdims=True)
  return affinity_NE / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)


def _share(counts_E: jax.Array) -> jax.Array:
  return counts_E / jnp.maximum(counts_E.sum(), 1.0)


def _mean(value_NE: jax.Array, valid_N: jax.Array) -> jax.Array:
  total_E = jnp.sum(jnp.where(valid_N[:, None], value_NE, 0.0), axis=0)
  return total_E / jnp.maximum(valid_N.sum(), 1)
