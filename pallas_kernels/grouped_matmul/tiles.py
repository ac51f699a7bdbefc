"""Row tiles of one group each, and a loop over those that exist.

Rows are sorted by group. A group is cut into tiles of nearly equal size; a
tile is padded to one of a few static row counts, so that a matrix product over
it is an ordinary one. The loops' trip counts are known only at run time: work
follows the rows that there are, whatever their distribution, and the padding
is less than one step of rows for each tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct as struct
import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.tune import store
from pallas_kernels.tune.store import Key

STEP_ROWS = 64  # row counts of tiles are multiples of this
# Beyond this a matrix product gets no faster. It is well above 512, as groups
# of about that size would else be cut in two.
MOST_ROWS = 768
# From so many rows on, XLA:CPU multiplies a transposed copy faster than it
# contracts over rows; the copy included.
TALL_ROWS = 400


@dataclasses.dataclass(frozen=True)
class RowSteps:
  """How rows are cut: tiles of `step`, 2 `step`, ... up to `most` rows.

  Near an even share of the rows, where most groups are, steps are half as long.
  """

  step: int = STEP_ROWS
  most: int = MOST_ROWS

  def __post_init__(self):
    if not 0 < self.step <= self.most:
      raise ValueError(
        f'RowSteps: step={self.step} and most={self.most}; a step is positive '
        f'and at most the largest tile.'
      )

  @classmethod
  def of(cls, op: str, form: str, key: Key) -> RowSteps:
    """As measured for `key`, else by default."""
    return store.build(cls, store.tuned(op, form, key) or {})


@struct.dataclass
class Tiles:
  """Tiles ordered by their row count.

  Attributes:
    group: int32 [J], below the number of groups.
    start: int32 [J], the tile's first row.
    count: int32 [J], how many rows it has.
    ends: int32 [len(row_counts)]: tiles before ends[i] and not before
      ends[i - 1] are padded to row_counts[i] rows; later tiles have no rows.
    row_counts: ascending (static).
  """

  group: jax.Array
  start: jax.Array
  count: jax.Array
  ends: jax.Array
  row_counts: tuple[int, ...] = struct.field(pytree_node=False)


def row_counts(
  rows: int, groups: int, steps: RowSteps = RowSteps()
) -> tuple[int, ...]:
  """The static row counts of tiles, for `rows` rows in `groups` groups.

  Each one is a loop to compile. Tiles of more than twice an even share would
  seldom be used: a group that is larger gets several.
  """
  step, share = steps.step, rows / groups
  even = -(-2 * rows // (groups * step)) * step
  most = min(steps.most, max(step, even))
  counts = set(range(step, most + 1, step))
  if share > 4 * step:  # else the padding of small tiles is small too
    near = range(0, most, -(-step // 2))
    counts |= {n for n in near if 0.8 * share <= n <= 1.25 * share}
  counts = sorted(n for n in counts if n < rows)
  return (*counts, rows) if rows <= most else tuple(counts)


def cut(sizes_E: jax.Array, rows: int, steps: RowSteps = RowSteps()) -> Tiles:
  """Cuts `rows` rows in groups of `sizes_E` rows into tiles."""
  counts = row_counts(rows, sizes_E.shape[0], steps)
  most = counts[-1]
  tiles_E = -(-sizes_E // most)
  # An even split, rounded up, wastes less than one large and one tiny tile.
  rows_E = _round_up(-(-sizes_E // jnp.maximum(tiles_E, 1)), counts)
  ends_E = jnp.cumsum(tiles_E)
  starts_E = jnp.cumsum(sizes_E) - sizes_E

  # Every group has at most one tile that is not full.
  tile = jnp.arange(rows // most + sizes_E.shape[0], dtype=jnp.int32)
  group = jnp.searchsorted(ends_E, tile, side='right')
  group = jnp.minimum(group, sizes_E.shape[0] - 1).astype(jnp.int32)
  offset = (tile - (ends_E - tiles_E)[group]) * rows_E[group]
  count = jnp.clip(sizes_E[group] - offset, 0, rows_E[group])
  count = jnp.where(tile < ends_E[-1], count, 0)

  kind = _kind(count, counts)
  kind = jnp.where(count > 0, kind, len(counts))
  order = jnp.argsort(kind)
  ends = jnp.searchsorted(kind[order], jnp.arange(len(counts)), side='right')
  return Tiles(
    group=group[order],
    start=(starts_E[group] + offset)[order],
    count=count[order],
    ends=ends.astype(jnp.int32),
    row_counts=counts,
  )


def _kind(count, counts):
  """Index of the smallest of `counts` that holds `count` rows."""
  return jnp.searchsorted(jnp.array(counts), count).astype(jnp.int32)


def _round_up(count, counts):
  return jnp.array(counts, jnp.int32)[_kind(count, counts)]


@struct.dataclass
class Tile:
  """One tile: `rows` (static) rows from `start`, those of `live` its own.

  The other rows belong to other tiles or to no group. `start + rows` never
  passes the end of the arrays.
  """

  group: jax.Array
  start: jax.Array
  live: jax.Array
  rows: int = struct.field(pytree_node=False)

  def read(self, a: jax.Array) -> jax.Array:
    """The tile's rows of `a`, zero where they are not its own."""
    a = lax.dynamic_slice_in_dim(a, self.start, self.rows)
    return self._select(a, jnp.zeros((), a.dtype))

  def read_all(self, a: jax.Array) -> jax.Array:
    """The tile's rows of `a`, with whatever the others hold."""
    return lax.dynamic_slice_in_dim(a, self.start, self.rows)

  def write(self, a: jax.Array, value: jax.Array) -> jax.Array:
    """`a` with the tile's own rows replaced."""
    value = self._select(value.astype(a.dtype), self.read_all(a))
    return lax.dynamic_update_slice_in_dim(a, value, self.start, 0)

  def mask(self, value: jax.Array) -> jax.Array:
    """`value`, zero in the rows that are not the tile's own."""
    return self._select(value, jnp.zeros((), value.dtype))

  def _select(self, yes, no):
    live = self.live.reshape((-1,) + (1,) * (yes.ndim - 1))
    return jnp.where(live, yes, no)


def for_each(
  tiles: Tiles, rows: int, body: Callable[[Tile, Any], Any], carry: Any
) -> Any:
  """carry <- body(tile, carry) for every tile, in no order to rely on."""
  begin = jnp.int32(0)
  for i, size in enumerate(tiles.row_counts):

    def step(j, carry, size=size):
      # Near the end the window is moved back to stay inside the arrays.
      start = jnp.minimum(tiles.start[j], rows - size)
      row = start + jnp.arange(size, dtype=jnp.int32)
      first, last = tiles.start[j], tiles.start[j] + tiles.count[j]
      live = (row >= first) & (row < last)
      return body(Tile(tiles.group[j], start, live, size), carry)

    carry = lax.fori_loop(begin, tiles.ends[i], step, carry)
    begin = tiles.ends[i]
  return carry


def matrix(w_EDF: jax.Array, tile: Tile) -> jax.Array:
  """[D, F]: the matrix of the tile's group."""
  return lax.dynamic_index_in_dim(w_EDF, tile.group, keepdims=False)


def add_matrix(w_EDF: jax.Array, tile: Tile, value_DF: jax.Array) -> jax.Array:
  """`w_EDF` with `value_DF` added to the matrix of the tile's group."""
  value = matrix(w_EDF, tile) + value_DF.astype(w_EDF.dtype)
  return lax.dynamic_update_index_in_dim(w_EDF, value, tile.group, 0)


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """Matrix product over one axis of each, accumulated in f32 or wider."""
  if contract == (0, 0) and a.shape[0] >= TALL_ROWS:
    # The barrier keeps XLA from folding the transposition into the product.
    a, contract = lax.optimization_barrier(a.T), (1, 0)
  wide = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
  numbers = (((contract[0],), (contract[1],)), ((), ()))
  return lax.dot_general(a, b, numbers, preferred_element_type=wide)
