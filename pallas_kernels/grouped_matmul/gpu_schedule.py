"""Which rows each program of a GPU kernel takes, and in which order."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.grouped_matmul.sizes import fit_sizes


class Schedule(NamedTuple):
  """Row tiles in the order of groups, each of one group.

  Attributes:
    group_J: int32; E means rows of no group, which become zeros.
    start_J: int32, the tile's first row.
    live_J: int32, how many rows it has; 0 for tiles past the last.
  """

  group_J: jax.Array
  start_J: jax.Array
  live_J: jax.Array


def bounds(sizes_E: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
  """int32 [E]: first row of each group and the one after its last.

  Negative sizes count as 0 and rows end at `rows`, so that no size, however
  wrong, leads a kernel out of its arrays.
  """
  ends_E = jnp.cumsum(fit_sizes(sizes_E, rows), dtype=jnp.int32)
  starts_E = jnp.concatenate([jnp.zeros(1, jnp.int32), ends_E[:-1]])
  return starts_E, ends_E


def schedule(
  sizes_E: jax.Array, rows: int, block_m: int, *, rest: bool
) -> Schedule:
  """Cuts groups into tiles of `block_m` rows, the last of each partial.

  Args:
    sizes_E: int32 [E].
    rows: R, of the arrays.
    block_m: rows of a tile.
    rest: whether rows past the last group get tiles, as group E.
  """
  starts_G, ends_G = bounds(sizes_E, rows)
  if rest:
    starts_G = jnp.append(starts_G, ends_G[-1])
    ends_G = jnp.append(ends_G, jnp.int32(rows))
  groups = starts_G.shape[0]
  tiles_G = -(-(ends_G - starts_G) // block_m)
  last_G = jnp.cumsum(tiles_G)
  # Each group has at most one partial tile, and that has at least one row.
  partial = min(groups, rows)
  tile_J = jnp.arange((rows - partial) // block_m + partial, dtype=jnp.int32)
  group_J = jnp.searchsorted(last_G, tile_J, side='right', method='compare_all')
  group_J = jnp.minimum(group_J, groups - 1).astype(jnp.int32)
  first_J = (last_G - tiles_G)[group_J]
  start_J = starts_G[group_J] + (tile_J - first_J) * block_m
  live_J = jnp.clip(ends_G[group_J] - start_J, 0, block_m)
  return Schedule(group_J, start_J, live_J)


# Columns of blocks that are computed together, so that the matrices they
# need stay in the second-level cache while the rows pass by.
GROUP_N = 8


def place(program, tiles_m: int, tiles_n: int):
  """(row tile, column of blocks) of a program of a one-dimensional grid.

  Programs run roughly in order: neighbours share their rows and matrices.
  """
  if tiles_n <= GROUP_N:
    return lax.div(program, tiles_n), lax.rem(program, tiles_n)
  span = tiles_m * GROUP_N
  first = lax.div(program, span) * GROUP_N
  width = jnp.minimum(tiles_n - first, GROUP_N)
  within = lax.rem(program, span)
  return lax.div(within, width), first + lax.rem(within, width)
