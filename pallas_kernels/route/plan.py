"""Pairs of token and expert in the order of experts."""

from __future__ import annotations

import flax.struct as struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Plan:
  """The R = N * K pairs sorted by expert; those of no expert come last.

  The order is stable: an expert sees its pairs in the order of tokens.

  Attributes:
    pair_R: int32, n * K + k of each sorted pair.
    place_NK: int32, where each pair went.
    sizes_E: int32, pairs of each expert.
  """

  pair_R: jax.Array
  place_NK: jax.Array
  sizes_E: jax.Array

  @property
  def token_R(self) -> jax.Array:
    """int32, n of each sorted pair. Not stored: it would be kept for long."""
    return jax.lax.div(self.pair_R, jnp.int32(self.place_NK.shape[1]))


def known_ids(ids_NK: jax.Array, experts: int) -> jax.Array:
  """int32 [N * K], with every id outside [0, experts) made `experts`."""
  id_R = ids_NK.reshape(-1).astype(jnp.int32)
  return jnp.where((id_R >= 0) & (id_R < experts), id_R, experts)


def inverse(place_R: jax.Array) -> jax.Array:
  """int32 [R]: the inverse of a permutation."""
  row_R = jnp.arange(place_R.size, dtype=jnp.int32)
  return (
    jnp.zeros_like(row_R)
    .at[place_R]
    .set(row_R, unique_indices=True, mode='promise_in_bounds')
  )


def by_sort(ids_NK: jax.Array, *, experts: int) -> Plan:
  """By one sort."""
  pair_R, sizes_E = sorted_pairs(ids_NK, experts)
  return Plan(pair_R, inverse(pair_R).reshape(ids_NK.shape), sizes_E)


def sorted_pairs(ids_NK: jax.Array, experts: int):
  """-> `pair_R` and `sizes_E` of a plan."""
  id_R = known_ids(ids_NK, experts)
  rows = id_R.size
  row_R = jnp.arange(rows, dtype=jnp.int32)
  if (experts + 1) * rows < 2**31:
    # One sort of packed keys takes a quarter of the time of an argsort.
    key_R = jnp.sort(id_R * rows + row_R)
    pair_R, id_R = key_R % rows, key_R // rows
  else:
    pair_R = jnp.argsort(id_R, stable=True).astype(jnp.int32)
    id_R = id_R[pair_R]
  ends_E = jnp.searchsorted(id_R, jnp.arange(experts), side='right')
  return pair_R, jnp.diff(ends_E, prepend=0).astype(jnp.int32)
