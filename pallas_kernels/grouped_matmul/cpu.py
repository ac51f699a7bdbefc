"""The three forms as loops over row tiles, for CPU.

`ragged_dot` on CPU multiplies every row by every matrix; this multiplies it by
its own.
"""

from __future__ import annotations

import jax.numpy as jnp

from pallas_kernels.grouped_matmul import tiles


def nn(x_RD, w_EDF, sizes_E):
  """[R, F]: x_r w_e."""
  return _rows(x_RD, w_EDF, sizes_E, w_EDF.shape[2], contract=(1, 0))


def nt(y_RF, w_EDF, sizes_E):
  """[R, D]: y_r w_e^T."""
  return _rows(y_RF, w_EDF, sizes_E, w_EDF.shape[1], contract=(1, 1))


def tn(x_RD, y_RF, sizes_E):
  """[E, D, F]: sum over the rows of e of x_r^T y_r."""
  rows, e = x_RD.shape[0], sizes_E.shape[0]

  def body(tile, w_EDF):
    product = tiles.dot(tile.read(x_RD), tile.read(y_RF), (0, 0))
    return tiles.add_matrix(w_EDF, tile, product)

  wide = jnp.promote_types(x_RD.dtype, jnp.float32)
  w_EDF = jnp.zeros((e, x_RD.shape[1], y_RF.shape[1]), wide)
  plan = tiles.cut(sizes_E, rows)
  return tiles.for_each(plan, rows, body, w_EDF).astype(x_RD.dtype)


def _rows(x, w_EDF, sizes_E, width, contract):
  rows = x.shape[0]

  def body(tile, y):
    product = tiles.dot(tile.read_all(x), tiles.matrix(w_EDF, tile), contract)
    return tile.write(y, product)

  plan = tiles.cut(sizes_E, rows)
  return tiles.for_each(plan, rows, body, jnp.zeros((rows, width), x.dtype))
