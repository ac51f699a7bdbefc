"""What the bodies of TPU kernels over groups of rows are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def dot(a, b, contract):
  """Accumulated in f32; f32 is rounded as `jax_default_matmul_precision` says.

  bf16 products are exact in f32, so that nothing is to be chosen for them.
  """
  asked = jax.config.jax_default_matmul_precision
  exact = a.dtype == jnp.float32 and asked not in (None, 'default', 'bfloat16')
  return lax.dot_general(
    a,
    b,
    (((contract[0],), (contract[1],)), ((), ())),
    precision=lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT,
    preferred_element_type=jnp.float32,
  )


def between(shape, axis, begin, end):
  """bool: where the index along an axis is in [begin, end)."""
  index = lax.broadcasted_iota(jnp.int32, shape, axis)
  return (index >= begin) & (index < end)


def keep(a, axis, begin, end):
  """`a`, zero outside [begin, end) of an axis."""
  # Not every TPU selects in 16 bits.
  kept = jnp.where(between(a.shape, axis, begin, end), a.astype('float32'), 0)
  return kept.astype(a.dtype)
