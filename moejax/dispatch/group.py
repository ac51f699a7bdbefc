"""The devices that exchange tokens: who holds which experts."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from moejax import sharding


@dataclasses.dataclass(frozen=True)
class Group:
  """Ranks along the mesh axes of the experts.

  Ranks and experts are cut into gcd(E, P) equal blocks: the ranks of a block
  hold all of its experts and take the tokens in turn. Usually a rank is a block
  of its own; with fewer experts than ranks, several share each expert.

  A *slot* is an expert on a rank: rank * held + place among the rank's own;
  `slots` stands for none.

  Attributes:
    axes: mesh axes of the experts.
    devices: mesh axes over which tokens are cut, those of the experts included.
    ranks: P, along `axes`.
    parts: devices along `devices`.
    num_experts: E.
  """

  axes: tuple[str, ...]
  devices: tuple[str, ...]
  ranks: int
  parts: int
  num_experts: int

  @property
  def held(self) -> int:
    """Experts that a rank holds."""
    return self.num_experts // math.gcd(self.num_experts, self.ranks)

  @property
  def share(self) -> int:
    """Ranks that hold the same experts."""
    return self.ranks // math.gcd(self.num_experts, self.ranks)

  @property
  def slots(self) -> int:
    return self.ranks * self.held

  @property
  def tokens_spec(self) -> PartitionSpec:
    return PartitionSpec(self.devices)

  @property
  def matrices_spec(self) -> PartitionSpec:
    """Of matrices [E, ...]: where ranks share experts, they come whole."""
    return PartitionSpec(self.axes if self.share == 1 else None)

  def own(self, w_EDF: jax.Array) -> jax.Array:
    """A rank's own experts, of what `matrices_spec` gave it."""
    if self.share == 1:
      return w_EDF
    block = lax.div(lax.axis_index(self.axes), jnp.int32(self.share))
    return lax.dynamic_slice_in_dim(w_EDF, block * self.held, self.held)

  def slot(self, ids_NK: jax.Array) -> jax.Array:
    """int32 [N, K]: the slot that each choice goes to."""
    known = (ids_NK >= 0) & (ids_NK < self.num_experts)
    turn_N1 = jnp.arange(len(ids_NK), dtype=jnp.int32)[:, None] % self.share
    rank_NK = ids_NK // self.held * self.share + turn_N1
    slot_NK = rank_NK * self.held + ids_NK % self.held
    return jnp.where(known, slot_NK, self.slots).astype(jnp.int32)

  def local(self, slot: jax.Array) -> jax.Array:
    """int32: places among this rank's experts; `held` for those of others."""
    first = lax.axis_index(self.axes) * self.held
    mine = (slot >= first) & (slot < first + self.held)
    return jnp.where(mine, slot - first, self.held)


def of_mesh(num_experts: int) -> Group | None:
  """The group of the mesh and rules in force; None without devices to cut.

  Tokens are cut over what the rules give to 'batch', 'time' and 'expert'.
  """
  axes = sharding.axes_of('expert')
  batch, time = (sharding.axes_of(name) for name in ('batch', 'time'))
  devices = tuple(dict.fromkeys((*batch, *time, *axes)))
  if not devices:
    return None
  return Group(
    axes=axes,
    devices=devices,
    ranks=sharding.size_of(axes),
    parts=sharding.size_of(devices),
    num_experts=num_experts,
  )
