"""Dropless dispatch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.types import Chosen, Paired, Pairs, Routed


class Sort(nn.Module):
  """Rows in expert order, grouped products, rows put back and summed.

  No token is dropped and none is padded.  Source: 2211.15841.
  """

  accepts = (Chosen, Pairs)

  @nn.compact
  def __call__(self, assignment: Chosen | Pairs, x_ND: jax.Array, experts):
    self.sow('stats', 'dropped_frac', jnp.zeros(()))
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
