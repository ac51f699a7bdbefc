"""Which group and which tile of rows each step of a kernel works on.

Rows are sorted by group and cut into tiles of equal size. A tile that holds
rows of several groups is visited once by each of them.
"""

from __future__ import annotations

import flax.struct as struct
import jax
import jax.numpy as jnp


@struct.dataclass
class Visits:
  """Visit v is of group `group_V[v]` and tile `v + shift_G[group_V[v]]`.

  Visits are ordered by group, hence by tile. There are no arrays with an entry
  for every row.

  Attributes:
    group_V: int32.
    shift_G: int32.
    starts: int32 [G + 1]: rows of group g are starts[g] to starts[g + 1].
    count: int32, the number of visits, at most `most(rows, tile, E)`.
  """

  group_V: jax.Array
  shift_G: jax.Array
  starts: jax.Array
  count: jax.Array


def most(rows: int, tile: int, groups: int) -> int:
  """An upper bound on visits: each inner boundary adds at most one."""
  return -(-rows // tile) + groups - 1


def with_rest(sizes_E: jax.Array, rows: int, tile: int) -> Visits:
  """Visits that see every tile; rows of no group are those of a group E.

  Group E visits only tiles that no other group does: each tile's first visitor
  clears what it does not own.
  """
  ends_E = jnp.cumsum(sizes_E, dtype=jnp.int32)
  first_E, count_E = _spans(sizes_E, ends_E, tile)
  rest = -(-ends_E[-1:] // tile)
  first_G = jnp.concatenate([first_E, rest])
  count_G = jnp.concatenate([count_E, -(-rows // tile) - rest])
  starts = _starts(ends_E, jnp.full(1, rows, jnp.int32))
  bound = most(rows, tile, sizes_E.size)
  return _visits(first_G, count_G, starts, bound)


def of_every_group(sizes_E: jax.Array, rows: int, tile: int) -> Visits:
  """Visits that see every group, an empty one once, on some tile."""
  ends_E = jnp.cumsum(sizes_E, dtype=jnp.int32)
  first_E, count_E = _spans(sizes_E, ends_E, tile)
  first_E = jnp.minimum(first_E, -(-rows // tile) - 1)
  bound = most(rows, tile, sizes_E.size)
  return _visits(first_E, jnp.maximum(count_E, 1), _starts(ends_E), bound)


def _spans(sizes_E, ends_E, tile):
  """The first tile and the number of tiles that hold rows of each group."""
  first_E = (ends_E - sizes_E) // tile
  count_E = jnp.where(sizes_E > 0, (ends_E - 1) // tile - first_E + 1, 0)
  return first_E, count_E


def _starts(ends_E, *more):
  return jnp.concatenate([jnp.zeros(1, jnp.int32), ends_E, *more])


def _visits(first_G, count_G, starts, bound):
  after_G = jnp.cumsum(count_G, dtype=jnp.int32)
  # Comparing with all is one fused pass; a search would be a loop of gathers.
  group_V = jnp.searchsorted(
    after_G, jnp.arange(bound), side='right', method='compare_all'
  )
  group_V = jnp.minimum(group_V, first_G.size - 1).astype(jnp.int32)
  shift_G = first_G - (after_G - count_G)
  return Visits(group_V, shift_G.astype(jnp.int32), starts, after_G[-1])
