"""Pieces of the GPU kernels, as they run inside of one program.

References cover whole arrays; blocks are read at explicit row and column
numbers. A mask is only made where an axis is no multiple of its block. All
products accumulate in f32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.grouped_matmul.gpu_tiles import Tiles


def shaped(shape, dtype, *like) -> jax.ShapeDtypeStruct:
  """A result; inside `shard_map` it varies over what any of `like` does."""
  types = [
    getattr(jax.typeof(a), 'manual_axis_type', None)
    for a in jax.tree.leaves(like)
  ]
  if None in types:  # another release of jax; not inside `shard_map` then
    return jax.ShapeDtypeStruct(shape, dtype)
  varying = frozenset().union(*(t.varying for t in types))
  kind = types[0].update(varying=varying)
  return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)


def numbers(start, size: int):
  """int32 [size]: start, start + 1, ..."""
  return start + jnp.arange(size, dtype=jnp.int32)


def inside(index, size: int, block: int):
  """Which of `index` are below `size`, or `None` if all must be."""
  return None if size % block == 0 else index < size


def both(rows, columns):
  """The mask of a block from those of its rows and columns."""
  if rows is None:
    return None if columns is None else columns[None, :]
  return rows[:, None] if columns is None else rows[:, None] & columns[None, :]


def load(ref, rows, columns, mask=None, lead=()):
  """The block of `ref` at these rows and columns, 0 where masked."""
  ref = ref.at[(*lead, rows[:, None], columns[None, :])]
  if mask is None:
    return plgpu.load(ref)
  mask = jnp.broadcast_to(mask, (rows.size, columns.size))
  return plgpu.load(ref, mask=mask, other=jnp.zeros((), ref.dtype))


def store(ref, rows, columns, value, mask=None, lead=()):
  """Writes a block, where not masked, in the dtype of `ref`."""
  if mask is not None:
    mask = jnp.broadcast_to(mask, value.shape)
  ref = ref.at[(*lead, rows[:, None], columns[None, :])]
  plgpu.store(ref, value.astype(ref.dtype), mask=mask)


def dot(a, b, contract: tuple[int, int]):
  """f32: the product of two blocks over one axis of each.

  f32 is multiplied as f32. The tensor cores would round it to 10 bits (TF32).
  """
  dims = (((contract[0],), (contract[1],)), ((), ()))
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(
    a, b, dims, precision=precision, preferred_element_type=jnp.float32
  )


def rows_times_matrices(
  a_refs, rows, b_refs, group, columns, tiles: Tiles, *, transposed
):
  """[block_m, block_n] each: rows of a times columns of b[group].

  One a meets every b, for as many results. Several meet one b each, and the
  products are summed.

  Args:
    a_refs: [*, k] each.
    rows: int32 [block_m], all within a.
    b_refs: [E, k, n] or, if `transposed`, [E, n, k] each.
    group: which matrix.
    columns: int32 [block_n], may go past n.
    tiles: block sizes.
    transposed: see `b_refs`.
  """
  k = a_refs[0].shape[1]
  n = b_refs[0].shape[1 if transposed else 2]
  keep_n = inside(columns, n, tiles.block_n)

  def step(i, sums):
    middle = numbers(i * tiles.block_k, tiles.block_k)
    keep_k = inside(middle, k, tiles.block_k)
    blocks = [load(a, rows, middle, both(None, keep_k)) for a in a_refs]

    def product(a, b_ref):
      if transposed:
        b = load(b_ref, columns, middle, both(keep_n, keep_k), (group,))
        return dot(a, b, (1, 1))
      b = load(b_ref, middle, columns, both(keep_k, keep_n), (group,))
      return dot(a, b, (1, 0))

    if len(blocks) == 1:
      each = [product(blocks[0], b) for b in b_refs]
      return tuple(s + p for s, p in zip(sums, each, strict=True))
    (total,) = sums
    for a, b_ref in zip(blocks, b_refs, strict=True):
      total += product(a, b_ref)
    return (total,)

  results = len(b_refs) if len(a_refs) == 1 else 1
  zeros = jnp.zeros((tiles.block_m, tiles.block_n), jnp.float32)
  steps = -(-k // tiles.block_k)
  return lax.fori_loop(0, steps, step, (zeros,) * results)


def columns_of_rows(
  a_ref, b_refs, first, last, a_columns, b_columns, tiles, *, a_at, b_at
):
  """[block_m, block_n] for each b: sum over rows of a_r^T b_r.

  Args:
    a_ref: [*, m]
    b_refs: [*, n] each.
    first: the first row,
    last: and the one after the last.
    a_columns: int32 [block_m], may go past m.
    b_columns: int32 [block_n], may go past n.
    tiles: block sizes.
    a_at: int32 [R] where rows of a are to be found; `None` is where they are.
    b_at: the same for b.
  """
  keep_m = inside(a_columns, a_ref.shape[1], tiles.block_m)
  keep_n = inside(b_columns, b_refs[0].shape[1], tiles.block_n)

  def step(i, sums):
    rows = numbers(first + i * tiles.block_k, tiles.block_k)
    own = rows < last
    # Rows past the end are masked; their numbers must still be in the array.
    rows = jnp.minimum(rows, last - 1)
    a = load(a_ref, look_up(a_at, rows), a_columns, both(own, keep_m))
    at = look_up(b_at, rows)
    return tuple(
      s + dot(a, load(b, at, b_columns, both(own, keep_n)), (0, 0))
      for s, b in zip(sums, b_refs, strict=True)
    )

  zeros = jnp.zeros((tiles.block_m, tiles.block_n), jnp.float32)
  steps = lax.div(last - first + (tiles.block_k - 1), tiles.block_k)
  return lax.fori_loop(0, steps, step, (zeros,) * len(b_refs))


def look_up(at_ref, rows):
  """Numbers of rows, through a table unless it is `None`."""
  return rows if at_ref is None else plgpu.load(at_ref.at[rows])
