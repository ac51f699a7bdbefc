"""The three forms through `jax.lax.ragged_dot`.

On TPU the compiler (libtpu) must be the release that belongs with the jax
release: a mismatched pair multiplies every row by every matrix.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

_NT = lax.RaggedDotDimensionNumbers(
  dot_dimension_numbers=(((1,), (2,)), ((), ())),
  lhs_ragged_dimensions=[0],
  rhs_group_dimensions=[0],
)
_TN = lax.RaggedDotDimensionNumbers(
  dot_dimension_numbers=(((0,), (0,)), ((), ())),
  lhs_ragged_dimensions=[0],
  rhs_group_dimensions=[],
)


def nn(x_RD, w_EDF, sizes_E):
  """[R, F]: x_r w_e."""
  return _live(_narrow(lax.ragged_dot, x_RD, w_EDF, sizes_E), sizes_E)


def nt(y_RF, w_EDF, sizes_E):
  """[R, D]: y_r w_e^T."""
  y = _narrow(lax.ragged_dot_general, y_RF, w_EDF, sizes_E, _NT)
  return _live(y, sizes_E)


def tn(x_RD, y_RF, sizes_E):
  """[E, D, F]: sum over the rows of e of x_r^T y_r."""
  x_RD, y_RF = _live(x_RD, sizes_E), _live(y_RF, sizes_E)
  return _narrow(lax.ragged_dot_general, x_RD, y_RF, sizes_E, _TN)


def _narrow(product, a, *args):
  """Accumulates in f32 or wider, and returns the dtype of `a`."""
  wide = jnp.promote_types(a.dtype, jnp.float32)
  return product(a, *args, preferred_element_type=wide).astype(a.dtype)


def _live(x_RD, sizes_E):
  """Zero in the rows past the last group, which the library leaves open."""
  live_R = jnp.arange(x_RD.shape[0]) < jnp.sum(sizes_E)
  return jnp.where(live_R[:, None], x_RD, 0)
