"""The oracle of all dispatches."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.types import Chosen, Padded, Pairs


class Mask(nn.Module):
  """Every expert computes every token; the weights pick.

  Exact, and E / K times the work: the definition that others must equal.
  """

  accepts = (Chosen, Pairs)

  @nn.compact
  def __call__(self, assignment: Chosen | Pairs, x_ND: jax.Array, experts):
    num_experts = assignment.num_experts
    weights_NE = assignment.weights_NE()
    # A token that goes nowhere may hold anything: 0 * nan would be nan.
    used_N = assignment.counts_NE().any(-1)
    x_ND = jnp.where(used_N[:, None], x_ND, 0)
    every_END = jnp.broadcast_to(x_ND, (num_experts, *x_ND.shape))
    y_END = experts(Padded(every_END)).rows_ECD
    self.sow('stats', 'dropped_frac', jnp.zeros(()))
    return jnp.einsum('end,ne->nd', y_END, weights_NE.astype(y_END.dtype))
