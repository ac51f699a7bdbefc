"""The three forms through `jax.lax.ragged_dot`.

On TPU the compiler (libtpu) must be the release that belongs with the jax
release: a mismatched pair multiplies every row by every matrix, and even the
right one does so for TN.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

NT = lax.RaggedDotDimensionNumbers(
  dot_dimension_numbers=(((1,), (2,)), ((), ())),
  lhs_ragged_dimensions=[0],
  rhs_group_dimensions=[0],
)
TN = lax.RaggedDotDimensionNumbers(
  dot_dimension_numbers=(((0,), (0,)), ((), ())),
  lhs_ragged_dimensions=[0],
  rhs_group_dimensions=[],
)


def refuses_dtype(a, _b, _sizes) -> str | None:
  if a.dtype not in (jnp.float32, jnp.bfloat16):
    return f'it takes float32 and bfloat16, not {a.dtype}'
  return None


def nn(x_RD, w_EDF, sizes_E):
  """[R, F]: x_r w_e."""
  return live(_narrow(lax.ragged_dot, x_RD, w_EDF, sizes_E), sizes_E)


def nt(y_RF, w_EDF, sizes_E):
  """[R, D]: y_r w_e^T."""
  y = _narrow(lax.ragged_dot_general, y_RF, w_EDF, sizes_E, NT)
  return live(y, sizes_E)


def tn(x_RD, y_RF, sizes_E):
  """[E, D, F]: sum over the rows of e of x_r^T y_r."""
  x_RD, y_RF = live(x_RD, sizes_E), live(y_RF, sizes_E)
  return _narrow(lax.ragged_dot_general, x_RD, y_RF, sizes_E, TN)


def _narrow(product, a, *args):
  """Accumulates in f32 or wider, and returns the dtype of `a`."""
  wide = jnp.promote_types(a.dtype, jnp.float32)
  return product(a, *args, preferred_element_type=wide).astype(a.dtype)


def live(x_RD, sizes_E):
  """`x_RD`, zero in the rows past the last group."""
  live_R = jnp.arange(x_RD.shape[0]) < jnp.sum(sizes_E)
  return jnp.where(live_R[:, None], x_RD, 0)
