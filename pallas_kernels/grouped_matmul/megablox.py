"""The three forms through the megablox kernels that jax brings, for TPU.

Differs: rows are padded to whole tiles, which copies them where they are not.
"""

from __future__ import annotations

import functools
import importlib

import jax.numpy as jnp

from pallas_kernels.grouped_matmul.library import live, refuses_dtype

MOST = 512  # of a tile's length, along every axis


def nn(x_RD, w_EDF, sizes_E, *, interpret=False):
  """[R, F]: x_r w_e."""
  return _rows(x_RD, w_EDF, sizes_E, False, interpret)


def nt(y_RF, w_EDF, sizes_E, *, interpret=False):
  """[R, D]: y_r w_e^T."""
  return _rows(y_RF, w_EDF, sizes_E, True, interpret)


def tn(x_RD, y_RF, sizes_E, *, interpret=False):
  """[E, D, F]: sum over the rows of e of x_r^T y_r."""
  rows = _row_tile(x_RD.shape[0])
  tiling = rows, *(min(MOST, a.shape[1]) for a in (x_RD, y_RF))
  return _library().tgmm(
    _padded(x_RD, rows).T,
    _padded(y_RF, rows),
    sizes_E,
    x_RD.dtype,
    tiling,
    interpret=interpret,
  )


def refuses(a, b, sizes_E) -> str | None:
  if _library() is None:
    return 'this jax does not bring it'
  return refuses_dtype(a, b, sizes_E)


@functools.cache
def _library():
  """The module with `gmm` and `tgmm`, or `None`."""
  try:
    return importlib.import_module(
      'jax.experimental.pallas.ops.tpu.megablox.gmm'
    )
  except ImportError:
    return None


def _rows(a, w_EDF, sizes_E, transposed, interpret):
  rows = _row_tile(a.shape[0])
  inner, outer = w_EDF.shape[:0:-1] if transposed else w_EDF.shape[1:]
  y = _library().gmm(
    _padded(a, rows),
    w_EDF,
    sizes_E,
    a.dtype,
    (rows, min(MOST, inner), min(MOST, outer)),
    transpose_rhs=transposed,
    interpret=interpret,
  )
  return live(y[: a.shape[0]], sizes_E)


def _row_tile(rows):
  return min(MOST, -(-rows // 16) * 16)


def _padded(a, step):
  return jnp.pad(a, ((0, -a.shape[0] % step), (0, 0)))
