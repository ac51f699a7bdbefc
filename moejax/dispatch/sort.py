"""Dispatch in the order of experts."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.dispatch import capacity
from moejax.types import Chosen, Paired, Pairs, Routed


class Sort(nn.Module):
  """Rows in expert order, grouped products, rows put back and summed.

  No token is padded, and none is dropped without a capacity: what is over it
  costs no work.  Source: 2211.15841; the capacity is that of `Einsum`.

  Attributes:
    capacity_factor: of N * K / E, rounded up, are what an expert takes at
      most; None for any number.
    group_tokens: tokens that share a capacity; None for all.
    drop: what goes first where too many choose an expert: 'position', later
      choices, or 'weight', those of less weight.
  """

  capacity_factor: float | None = None
  group_tokens: int | None = None
  drop: str = 'position'

  accepts = (Chosen, Pairs)

  @nn.compact
  def __call__(self, assignment: Chosen | Pairs, x_ND: jax.Array, experts):
    assignment = self._within_capacity(assignment)
    if isinstance(assignment, Pairs):
      rows = Paired(
        x_ND,
        assignment.tokens_R,
        assignment.ids_R,
        assignment.weights_R,
        assignment.sizes_E(),
      )
    else:
      rows = Routed(
        x_ND,
        assignment.ids_NK,
        assignment.weights_NK,
        assignment.num_experts,
      )
    return rows.combine(experts(rows))

  def _within_capacity(self, assignment):
    if self.capacity_factor is None:
      self.sow('stats', 'dropped_frac', jnp.zeros(()))
      return assignment
    if not isinstance(assignment, Chosen):
      raise ValueError(
        f'capacity_factor={self.capacity_factor} bounds what tokens choose, '
        f'but the router makes {type(assignment).__name__}, which has a bound '
        'of its own; set it to None.'
      )
    assignment, frac = capacity.limit(
      assignment,
      capacity_factor=self.capacity_factor,
      group_tokens=self.group_tokens,
      drop=self.drop,
    )
    self.sow('stats', 'dropped_frac', frac)
    return assignment
