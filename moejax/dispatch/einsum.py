"""Dispatch with a capacity."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.dispatch import capacity
from moejax.types import Chosen, Padded


class Einsum(nn.Module):
  """One-hot dispatch into C slots per expert; what does not fit is dropped.

  Source: 2006.16668 sec. 2.2 and algorithm 1.
  Differs: all first choices take slots before any second choice, across
  tokens in order; no random second expert.

  Attributes:
    capacity_factor: C is ceil(capacity_factor * N * K / E) per group.
    group_tokens: tokens that share a capacity; None for all. It must divide
      N, where N is more. The masks hold N * E * C numbers, so that groups
      bound the memory.
    drop: what goes first where too many choose an expert: 'position', later
      choices, or 'weight', those of less weight.
  """

  capacity_factor: float
  group_tokens: int | None = None
  drop: str = 'position'

  accepts = (Chosen,)

  @nn.compact
  def __call__(self, assignment: Chosen, x_ND: jax.Array, experts):
    num_experts = assignment.num_experts
    slots = capacity.slots(
      assignment,
      self.capacity_factor,
      group_tokens=self.group_tokens,
      drop=self.drop,
    )
    kept = slots.kept_GNK
    groups, group, _ = kept.shape
    ids = assignment.ids_NK.reshape(kept.shape)
    weights = assignment.weights_NK.reshape(kept.shape)
    frac = capacity.dropped_frac(assignment, slots)
    self.sow('stats', 'dropped_frac', frac)

    place = jax.nn.one_hot(slots.slot_GNK, slots.capacity, dtype=x_ND.dtype)
    expert = jax.nn.one_hot(ids, num_experts, dtype=x_ND.dtype)
    expert = expert * kept[..., None].astype(x_ND.dtype)
    dispatch = jnp.einsum('gnke,gnkc->gnec', expert, place)
    combine = jnp.einsum(
      'gnke,gnkc,gnk->gnec', expert, place, weights.astype(x_ND.dtype)
    )
    # A token that goes nowhere may hold anything: 0 * nan would be nan.
    x = x_ND.reshape(groups, group, -1)
    x = jnp.where(kept.any(-1, keepdims=True), x, 0)
    rows = jnp.einsum('gnec,gnd->egcd', dispatch, x)
    rows = rows.reshape(num_experts, groups * slots.capacity, -1)
    y = experts(Padded(rows)).rows_ECD
    y = y.reshape(num_experts, groups, slots.capacity, -1)
    y = jnp.einsum('gnec,egcd->gnd', combine, y)
    return y.reshape(x_ND.shape[0], -1)
