"""Tokens to the devices of their experts, and back: what exchanges share.

Routing stays outside of `jax.shard_map`, on global arrays, so that what routers
and losses count is counted over all tokens; the exchange and the experts'
products are inside. An exchange is a function

  (group, call, x_ND, slots_NK, weights_NK, matrices) -> (y_ND, told)

of a device's own tokens, their slots (`Group`), and the matrices of its own
experts; `call(x_RD, local_RK, weights_RK, matrices)` is what these make of
rows, weighted and summed over K. `told` are statistics, the same on every
device.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from moejax import sharding
from moejax.deferred import Deferred
from moejax.dispatch import group as groups
from moejax.types import Chosen, Routed


def across(
  exchange: Callable,
  assignment: Chosen,
  x_ND: jax.Array,
  experts: Callable,
  *,
  stages: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """y_ND, and what the exchange tells.

  Each device's tokens are cut into `stages` parts. No part waits for another:
  while one is computed, the next can travel to its experts and the last one
  back. Where there are no devices to exchange with, it is a plain call.

  Raises:
    ValueError: `stages` is not positive.
  """
  if stages < 1:
    raise ValueError(f'stages={stages} must be at least 1, a single exchange.')
  group = groups.of_mesh(assignment.num_experts)
  if group is None:
    rows = Routed(
      x_ND, assignment.ids_NK, assignment.weights_NK, assignment.num_experts
    )
    return rows.combine(experts(rows)), {}
  done = experts(Deferred(x_ND.shape[-1]))

  def call(x_RD, local_RK, weights_RK, matrices):
    rows = Routed(x_RD, local_RK, weights_RK, group.held)
    return rows.combine(done(rows, matrices))

  def own(x_ND, ids_NK, weights_NK, matrices):
    slots_NK = group.slot(ids_NK)
    if group.ranks == 1:
      return call(x_ND, slots_NK, weights_NK, matrices), {}
    matrices = [group.own(w) for w in matrices]
    parts = [
      exchange(group, call, *part, matrices)
      for part in zip(
        *(jnp.split(a, stages) for a in (x_ND, slots_NK, weights_NK)),
        strict=True,
      )
    ]
    told = [told for _, told in parts]
    return jnp.concatenate([y_ND for y_ND, _ in parts]), jax.tree.map(
      lambda *values: jnp.stack(values), *told
    )

  n = x_ND.shape[0]
  missing = -n % (group.parts * stages)
  y_ND, told = jax.shard_map(
    own,
    in_specs=(*[group.tokens_spec] * 3, group.matrices_spec),
    out_specs=(group.tokens_spec, PartitionSpec()),
    axis_names=sharding.auto_axes(),
    check_vma=False,
  )(
    padded(x_ND, missing, 0),
    padded(assignment.ids_NK, missing, assignment.num_experts),
    padded(assignment.weights_NK, missing, 0),
    done.matrices,
  )
  return y_ND[:n], told


def padded(a: jax.Array, missing: int, value) -> jax.Array:
  """Tokens of no expert at the end, so that all devices have as many."""
  if not missing:
    return a
  return jnp.pad(a, ((0, missing), (0, 0)), constant_values=value)


def limited(module: nn.Module, assignment: Chosen) -> Chosen:
  """What the module's `limit` leaves; sows the share that it drops."""
  frac = jnp.zeros(())
  if module.limit is not None:
    assignment, frac = module.limit(assignment)
  module.sow('stats', 'dropped_frac', frac)
  return assignment
