"""The definition of the grouped matrix product."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def group_of_row(sizes_E: jax.Array, rows: int) -> jax.Array:
  """int32 [R]: the group of each row; E for rows past the last group."""
  ends_E = jnp.cumsum(sizes_E)
  return jnp.searchsorted(ends_E, jnp.arange(rows), side='right')


def grouped_matmul(x_RD, w_EDF, sizes_E):
  """[R, F]: row r times the matrix of its group, zero past the last group."""
  group_R = group_of_row(sizes_E, x_RD.shape[0])

  def add(y_RF, w_DF_and_group):
    w_DF, e = w_DF_and_group
    own = (group_R == e)[:, None]
    x = jnp.where(own, x_RD, 0)
    y = jnp.dot(x, w_DF, preferred_element_type=jnp.float32)
    return y_RF + jnp.where(own, y, 0), None

  y_RF = jnp.zeros((x_RD.shape[0], w_EDF.shape[2]), jnp.float32)
  y_RF, _ = jax.lax.scan(add, y_RF, (w_EDF, jnp.arange(w_EDF.shape[0])))
  return y_RF.astype(x_RD.dtype)
