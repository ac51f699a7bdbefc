"""The three forms as Triton kernels, for NVIDIA GPUs.

Which rows belong to which tile is worked out before the kernel, in a few
vector operations over tiles and groups; inside of it there is no search. Rows
of several groups never share a tile. Nothing is added to by several programs,
so results do not depend on their order.

bf16 is multiplied by the tensor cores. f32 is multiplied as f32, without
tensor cores: their TF32 keeps 10 bits, which is 1e-3.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.grouped_matmul import gpu_parts as parts
from pallas_kernels.grouped_matmul.gpu_schedule import bounds, place, schedule
from pallas_kernels.grouped_matmul.gpu_tiles import Product, Tiles, settle

OP = 'grouped_matmul.triton'


def refuses(a, b, sizes_E) -> str | None:
  """Why the kernels do not take these arguments, or `None`."""
  del sizes_E
  if a.dtype not in (jnp.float32, jnp.bfloat16) or a.dtype != b.dtype:
    return f'it takes float32 and bfloat16, not {a.dtype} and {b.dtype}'
  return too_large(a, b)


def too_large(*arrays) -> str | None:
  """Rows are numbered in int32."""
  for a in arrays:
    if a.shape[0] >= 2**31 - 2**16:
      return f'{a.shape[0]} rows do not fit int32'
  return None


def nn(x_RD, w_EDF, sizes_E, *, tiles: Tiles | None = None, interpret=False):
  """[R, F]: x_r w_e."""
  return _rows(x_RD, w_EDF, sizes_E, tiles, interpret, transposed=False)


def nt(y_RF, w_EDF, sizes_E, *, tiles: Tiles | None = None, interpret=False):
  """[R, D]: y_r w_e^T."""
  return _rows(y_RF, w_EDF, sizes_E, tiles, interpret, transposed=True)


def tn(x_RD, y_RF, sizes_E, *, tiles: Tiles | None = None, interpret=False):
  """[E, D, F]: sum over the rows of e of x_r^T y_r; 0 for an empty group."""
  sizes = x_RD.shape[0], sizes_E.shape[0], x_RD.shape[1], y_RF.shape[1]
  tiles = settle(OP, 'tn', sizes, tiles, product_of('tn', sizes, x_RD.dtype))
  (w_EDF,) = sum_of_rows(
    x_RD, (y_RF,), sizes_E, tiles=tiles, interpret=interpret
  )
  return w_EDF


def product_of(form, sizes, dtype) -> Product:
  """What tiles of a form are chosen for; `sizes` are rows, groups, D, F."""
  rows, groups, d, f = sizes
  mean = -(-rows // groups)
  m, n, k = dict(nn=(mean, f, d), nt=(mean, d, f), tn=(d, f, mean))[form]
  return Product(m, n, k, dtype)


def _rows(a_RK, b, sizes_E, tiles, interpret, transposed):
  rows, experts = a_RK.shape[0], b.shape[0]
  n, form = b.shape[1 if transposed else 2], 'nt' if transposed else 'nn'
  sizes = rows, *b.shape
  tiles = settle(OP, form, sizes, tiles, product_of(form, sizes, a_RK.dtype))
  plan = schedule(sizes_E, rows, tiles.block_m, rest=True)
  grid = plan.group_J.size, -(-n // tiles.block_n)

  def kernel(group_J, start_J, live_J, a_ref, b_ref, out_ref):
    j, column = place(pl.program_id(0), *grid)
    group, start, live = group_J[j], start_J[j], live_J[j]
    columns = parts.numbers(column * tiles.block_n, tiles.block_n)

    def write(value):
      own = parts.numbers(0, tiles.block_m) < live
      keep = parts.both(own, parts.inside(columns, n, tiles.block_n))
      at = parts.numbers(start, tiles.block_m)
      parts.store(out_ref, at, columns, value, keep)

    @pl.when((live > 0) & (group < experts))
    def _multiply():
      # Rows past the tile's own repeat its last: they cost no reads.
      own = start + jnp.minimum(parts.numbers(0, tiles.block_m), live - 1)
      (value,) = parts.rows_times_matrices(
        (a_ref,), own, (b_ref,), group, columns, tiles, transposed=transposed
      )
      write(value)

    @pl.when((live > 0) & (group == experts))
    def _fill():
      write(jnp.zeros((tiles.block_m, tiles.block_n), jnp.float32))

  return call(
    kernel,
    f'grouped_{form}',
    grid,
    parts.shaped((rows, n), a_RK.dtype, a_RK, b, plan),
    tiles,
    interpret,
    2 * rows * b[0].size,
  )(*plan, a_RK, b)


def sum_of_rows(
  a,
  bs,
  sizes_E,
  *,
  a_at=None,
  b_at=None,
  tiles: Tiles,
  interpret=False,
  name='grouped_tn',
):
  """[E, m, n] for each b: the sum over rows r of e of a_r^T b_r.

  Args:
    a: [*, m]
    bs: [*, n] each.
    sizes_E: int32 [E].
    a_at: int32 [R], the row of `a` that is meant by row r; `None` is r.
    b_at: the same for `bs`.
    tiles: block sizes.
    interpret: runs on any platform, slowly.
    name: of the kernel.
  """
  tables = [t for t in (a_at, b_at) if t is not None]
  rows = tables[0].shape[0] if tables else a.shape[0]
  experts, m, n = sizes_E.shape[0], a.shape[1], bs[0].shape[1]
  starts_E, ends_E = bounds(sizes_E, rows)
  blocks_m, blocks_n = -(-m // tiles.block_m), -(-n // tiles.block_n)

  def kernel(start_E, end_E, *refs):
    at, refs = list(refs[: len(tables)]), refs[len(tables) :]
    a_table = None if a_at is None else at.pop(0)
    b_table = None if b_at is None else at.pop(0)
    a_ref, b_refs, out_refs = (
      refs[0],
      refs[1 : 1 + len(bs)],
      refs[1 + len(bs) :],
    )
    program = pl.program_id(0)
    group = lax.div(program, blocks_m * blocks_n)
    within = lax.rem(program, blocks_m * blocks_n)
    row, column = place(within, blocks_m, blocks_n)
    row = parts.numbers(row * tiles.block_m, tiles.block_m)
    column = parts.numbers(column * tiles.block_n, tiles.block_n)
    sums = parts.columns_of_rows(
      a_ref,
      b_refs,
      start_E[group],
      end_E[group],
      row,
      column,
      tiles,
      a_at=a_table,
      b_at=b_table,
    )
    keep = parts.both(
      parts.inside(row, m, tiles.block_m),
      parts.inside(column, n, tiles.block_n),
    )
    for out_ref, value in zip(out_refs, sums, strict=True):
      parts.store(out_ref, row, column, value, keep, (group,))

  args = (starts_E, ends_E, *tables, a, *bs)
  out = parts.shaped((experts, m, n), a.dtype, args)
  grid = (experts * blocks_m * blocks_n,)
  flops = 2 * rows * m * n * len(bs)
  outs = [out] * len(bs)
  return call(kernel, name, grid, outs, tiles, interpret, flops)(*args)


def call(kernel, name, grid, out_shape, tiles, interpret, flops=0):
  """A one-dimensional grid of programs over whole arrays.

  The text of a compiled program tells the FLOPs, as if all rows were full.
  """
  params = plgpu.CompilerParams(
    num_warps=tiles.num_warps, num_stages=tiles.num_stages
  )
  return pl.pallas_call(
    kernel,
    out_shape=out_shape,
    grid=(math.prod(grid),),
    name=name,
    compiler_params=params,
    interpret=interpret,
    # Triton's lowering forgets a cost estimate, and keeps this.
    metadata={'flops': str(flops)},
  )
