"""Capacity: how many tokens an expert takes, and which ones it drops."""

from __future__ import annotations

import math

import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.types import Chosen

# What is dropped first: later choices (all first choices come before any
# second one, and tokens in order), or choices of less weight.
DROPS = ('position', 'weight')


@struct.dataclass
class Slots:
  """Where each choice goes; tokens in groups of [G, N], each with C slots.

  Attributes:
    slot_GNK: int32, the place of each choice among those of its expert.
    kept_GNK: bool, whether it is one of C and has an expert.
    capacity: C (static).
  """

  slot_GNK: jax.Array
  kept_GNK: jax.Array
  capacity: int = struct.field(pytree_node=False)


def slots(
  assignment: Chosen,
  capacity_factor: float,
  *,
  group_tokens: int | None = None,
  drop: str = 'position',
) -> Slots:
  """Gives each choice a slot of its expert.

  Args:
    assignment: what the tokens chose.
    capacity_factor: C is ceil(capacity_factor * N * K / E) per group.
    group_tokens: tokens that share a capacity; None for all.
    drop: what goes first where too many choose an expert: 'position' or
      'weight'.

  Raises:
    ValueError: for a factor that leaves no slot, groups that do not divide
      the tokens, or an unknown `drop`.
  """
  if drop not in DROPS:
    raise ValueError(f'drop={drop!r} is unknown; use {" or ".join(DROPS)}.')
  n, k = assignment.ids_NK.shape
  # A call of few tokens, as in decoding, is one small group.
  group = min(n, group_tokens or n)
  if n % group:
    raise ValueError(
      f'group_tokens={group} does not divide the {n} tokens of a call; '
      'choose a divisor, or None for one group.'
    )
  num_experts = assignment.num_experts
  capacity = capacity_slots(group, k, num_experts, capacity_factor)
  shape = (n // group, group, k)
  ids_GNK = assignment.ids_NK.reshape(shape)
  weights_GNK = None
  if drop == 'weight':
    weights_GNK = jax.lax.stop_gradient(assignment.weights_NK).reshape(shape)
  slot_GNK = _places(ids_GNK, weights_GNK, num_experts)
  kept_GNK = (slot_GNK < capacity) & (ids_GNK < num_experts)
  return Slots(slot_GNK, kept_GNK, capacity)


def limit(
  assignment: Chosen,
  *,
  capacity_factor: float,
  group_tokens: int | None = None,
  drop: str = 'position',
) -> tuple[Chosen, jax.Array]:
  """What is left of `assignment`, and the share of the choices dropped.

  Arguments and errors are those of `slots`.
  """
  found = slots(
    assignment, capacity_factor, group_tokens=group_tokens, drop=drop
  )
  return dropped(assignment, found), dropped_frac(assignment, found)


def dropped(assignment: Chosen, slots: Slots) -> Chosen:
  """`assignment` without what is not kept: it costs no work, adds nothing."""
  kept_NK = slots.kept_GNK.reshape(assignment.ids_NK.shape)
  return assignment.replace(
    ids_NK=jnp.where(kept_NK, assignment.ids_NK, assignment.num_experts),
    weights_NK=jnp.where(kept_NK, assignment.weights_NK, 0.0),
  )


def dropped_frac(assignment: Chosen, slots: Slots) -> jax.Array:
  """f32 scalar: the share of the choices that is dropped."""
  chosen_NK = assignment.ids_NK < assignment.num_experts
  wanted = chosen_NK.sum(dtype=jnp.float32)
  kept = slots.kept_GNK.sum(dtype=jnp.float32)
  return 1.0 - kept / jnp.maximum(wanted, 1.0)


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
      'number, such as 1.25, or use dispatch.Sort without one, which drops '
      'nothing.'
    )
  return min(tokens, math.ceil(capacity_factor * tokens * k / num_experts))


def _places(ids_GNK, weights_GNK, num_experts):
  """int32 [G, N, K]: the rank of each choice among those of its expert."""
  _, n, k = ids_GNK.shape

  def one(ids_NK, weights_NK):
    id_R = ids_NK.T.reshape(-1)  # all first choices, then all second ones
    row_R = jnp.arange(n * k, dtype=jnp.int32)
    keys = (id_R, row_R)
    if weights_NK is not None:
      keys = (id_R, -weights_NK.T.reshape(-1), row_R)
    sorted_R, *_, order_R = jax.lax.sort(keys, num_keys=len(keys))
    start_E = jnp.searchsorted(sorted_R, jnp.arange(num_experts + 1))
    rank_R = row_R - start_E.astype(jnp.int32)[sorted_R]
    place_R = jnp.zeros_like(row_R).at[order_R].set(rank_R, unique_indices=True)
    return place_R.reshape(k, n).T

  return jax.vmap(one)(ids_GNK, weights_GNK)
