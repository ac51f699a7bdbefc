"""Dropless dispatch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.types import Chosen, Ragged


class Sort(nn.Module):
  """Rows in expert order, one grouped product, rows put back and summed.

  No token is dropped and none is padded.  Source: 2211.15841.
  """

  accepts = (Chosen,)

  @nn.compact
  def __call__(self, assignment: Chosen, x_ND: jax.Array, experts):
    self.sow('stats', 'dropped_frac', jnp.zeros(()))
    n, k = assignment.ids_NK.shape
    # Stable, so that an expert sees its tokens in order; "no expert" (id E)
    # sorts last, past every group, where the product gives zeros.
    order_R = jnp.argsort(assignment.ids_NK.reshape(-1), stable=True)
    sizes_E = assignment.counts_E().astype(jnp.int32)
    rows = experts(Ragged(x_ND[order_R // k], sizes_E)).rows_RD
    back_R = (
      jnp.zeros_like(order_R)
      .at[order_R]
      .set(jnp.arange(n * k), unique_indices=True)
    )
    y_NKD = rows[back_R].reshape(n, k, -1)
    weights_NK = assignment.weights_NK.astype(y_NKD.dtype)
    return jnp.einsum('nkd,nk->nd', y_NKD, weights_NK)
