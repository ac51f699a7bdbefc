"""Pieces of selection that kernels and CPU share.

Numbers are compared as integers that order as `jax.lax.top_k` orders floats: a
NaN is above all and -0 below 0. No integer belongs to LEAST, which marks what
is taken already.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LEAST = -(2**31)
CLOSED = -0x7F800001  # the key of minus infinity: what may not be chosen


def to_key(rank: jax.Array) -> jax.Array:
  """int32, in the order of f32 numbers whose NaNs have no sign."""
  bits = jax.lax.bitcast_convert_type(rank, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def from_key(key: jax.Array) -> jax.Array:
  """Undoes `to_key`."""
  bits = jnp.where(key < 0, key ^ 0x7FFFFFFF, key)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def largest(key: jax.Array, k: int, axis: int):
  """The k largest along `axis`, by k rounds; ties go to the lower index.

  Returns:
    k pairs of index and key, with `axis` of size 1, and `key` with these marked
    as taken.
  """
  size = key.shape[axis]
  place = jax.lax.broadcasted_iota(jnp.int32, key.shape, axis)
  found = []
  for _ in range(k):
    best = key.max(axis, keepdims=True)
    first = jnp.where(key == best, place, size).min(axis, keepdims=True)
    key = jnp.where(place == first, LEAST, key)
    found.append((first, best))
  return found, key


def score(found) -> jax.Array:
  """The key of a sum of numbers, given `largest`."""
  numbers = [from_key(key) for _, key in found]
  total = sum(numbers[1:], numbers[0])
  # A sum may make a NaN with a sign, which would rank it last.
  return to_key(jnp.where(jnp.isnan(total), jnp.nan, total))


def shaped(shape, dtype, *like) -> jax.ShapeDtypeStruct:
  """A result; inside `shard_map` it varies over what any of `like` does."""
  types = [jax.typeof(a).manual_axis_type for a in jax.tree.leaves(like)]
  varying = frozenset().union(*(t.varying for t in types))
  kind = types[0].update(varying=varying)
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
