"""The three forms as loops over row tiles, for CPU.

`ragged_dot` on CPU multiplies every row by every matrix; this multiplies it by
its own.
"""

from __future__ import annotations

import jax.numpy as jnp

from pallas_kernels.grouped_matmul import tiles
from pallas_kernels.grouped_matmul.tiles import RowSteps
from pallas_kernels.tune import store

OP = 'grouped_matmul.tiles'


def nn(x_RD, w_EDF, sizes_E, *, steps: RowSteps | None = None):
  """[R, F]: x_r w_e."""
  steps = steps or _steps('nn', x_RD, w_EDF.shape)
  return _rows(x_RD, w_EDF, sizes_E, w_EDF.shape[2], (1, 0), steps)


def nt(y_RF, w_EDF, sizes_E, *, steps: RowSteps | None = None):
  """[R, D]: y_r w_e^T."""
  steps = steps or _steps('nt', y_RF, w_EDF.shape)
  return _rows(y_RF, w_EDF, sizes_E, w_EDF.shape[1], (1, 1), steps)


def tn(x_RD, y_RF, sizes_E, *, steps: RowSteps | None = None):
  """[E, D, F]: sum over the rows of e of x_r^T y_r."""
  rows, e = x_RD.shape[0], sizes_E.shape[0]
  steps = steps or _steps('tn', x_RD, (e, x_RD.shape[1], y_RF.shape[1]))

  def body(tile, w_EDF):
    product = tiles.dot(tile.read(x_RD), tile.read(y_RF), (0, 0))
    return tiles.add_matrix(w_EDF, tile, product)

  wide = jnp.promote_types(x_RD.dtype, jnp.float32)
  w_EDF = jnp.zeros((e, x_RD.shape[1], y_RF.shape[1]), wide)
  plan = tiles.cut(sizes_E, rows, steps)
  return tiles.for_each(plan, rows, body, w_EDF).astype(x_RD.dtype)


def _steps(form, a, matrices_shape):
  key = store.Key(store.host(), a.shape[0], *matrices_shape, a.dtype.name)
  return RowSteps.of(OP, form, key)


def _rows(x, w_EDF, sizes_E, width, contract, steps):
  rows = x.shape[0]

  def body(tile, y):
    product = tiles.dot(tile.read_all(x), tiles.matrix(w_EDF, tile), contract)
    return tile.write(y, product)

  plan = tiles.cut(sizes_E, rows, steps)
  return tiles.for_each(plan, rows, body, jnp.zeros((rows, width), x.dtype))
