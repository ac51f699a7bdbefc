"""Dispatch with a capacity."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

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
  """

  capacity_factor: float
  group_tokens: int | None = None

  accepts = (Chosen,)

  @nn.compact
  def __call__(self, assignment: Chosen, x_ND: jax.Array, experts):
    n, k = assignment.ids_NK.shape
    # A call of few tokens, as in decoding, is one small group.
    group = min(n, self.group_tokens or n)
    if n % group:
      raise ValueError(
        f'group_tokens={group} does not divide the {n} tokens of a call; '
        'choose a divisor, or None for one group.'
      )
    num_experts = assignment.num_experts
    capacity = capacity_slots(group, k, num_experts, self.capacity_factor)
    groups = n // group

    ids = assignment.ids_NK.reshape(groups, group, k)
    slot, kept = _place(ids, num_experts, capacity)
    weights = assignment.weights_NK.reshape(ids.shape)
    self.sow('stats', 'dropped_frac', _dropped_frac(ids, kept, num_experts))

    place = jax.nn.one_hot(slot, capacity, dtype=x_ND.dtype)
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
    rows = rows.reshape(num_experts, groups * capacity, -1)
    y = experts(Padded(rows)).rows_ECD
    y = y.reshape(num_experts, groups, capacity, -1)
    return jnp.einsum('gnec,egcd->gnd', combine, y).reshape(n, -1)


def capacity_slots(
  tokens: int, k: int, num_experts: int, capacity_factor: float
) -> int:
  """Slots per expert, at least 1 and never more than the tokens.

  Raises:
    ValueError: if the factor is not positive.
  """
  if not capacity_factor > 0:
    raise ValueError(
      f'capacity_factor={capacity_factor} leaves no slot; give a positive '
      'number, such as 1.25, or use dispatch.Sort, which drops nothing.'
    )
  return min(tokens, math.ceil(capacity_factor * tokens * k / num_experts))


def _place(ids_GNK, num_experts, capacity):
  """Slot of each choice within its expert, and whether it fits."""
  groups, n, k = ids_GNK.shape
  by_choice = ids_GNK.swapaxes(1, 2).reshape(groups, k * n)
  one_hot = jax.nn.one_hot(by_choice, num_experts, dtype=jnp.int32)
  before = jnp.cumsum(one_hot, axis=1) - one_hot
  slot = (before * one_hot).sum(-1)
  slot = slot.reshape(groups, k, n).swapaxes(1, 2)
  return slot, (slot < capacity) & (ids_GNK < num_experts)


def _dropped_frac(ids, kept, num_experts):
  wanted = (ids < num_experts).sum(dtype=jnp.float32)
  return 1.0 - kept.sum(dtype=jnp.float32) / jnp.maximum(wanted, 1.0)
