"""The three forms as Pallas kernels for TPU.

A grid step multiplies one tile of rows by a block of the matrix of one group.
Which tile and group, scalars tell that arrive before the kernel starts; steps
of a tile that several groups share follow each other, so that its result stays
in fast memory and every group stores its own rows. A group that owns all of a
tile multiplies it at once, another only the parts of it that hold its rows.

Source: arXiv 2211.15841 section 5 (grouped products without padding).
Differs: no block-sparse format and no padding of groups to tiles; empty groups
cost a step only where their gradient has to be zeroed, and rows of no group
cost a store of zeros.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import chips
from pallas_kernels.grouped_matmul import row_parts, tile_shapes, visits
from pallas_kernels.grouped_matmul.tile_shapes import LANES, Problem, TileShape
from pallas_kernels.grouped_matmul.tpu_parts import between, dot, keep

# Half of the memory that scalars share with the compiler's own.
MOST_SCALAR_BYTES = 512 * 1024


def nn(x_RD, w_EDF, sizes_E, *, tiles=None, chip=None, interpret=False):
  """[R, F]: x_r w_e."""
  return _rows('nn', x_RD, w_EDF, sizes_E, tiles, chip, interpret)


def nt(y_RF, w_EDF, sizes_E, *, tiles=None, chip=None, interpret=False):
  """[R, D]: y_r w_e^T."""
  return _rows('nt', y_RF, w_EDF, sizes_E, tiles, chip, interpret)


def tn(x_RD, y_RF, sizes_E, *, tiles=None, chip=None, interpret=False):
  """[E, D, F]: sum over the rows of e of x_r^T y_r."""
  problem = Problem.of('tn', x_RD, y_RF, sizes_E)
  tiles = tile_shapes.settle(problem, tiles, chip)
  return _matrices(problem, tiles, chip, interpret, x_RD, y_RF, sizes_E)


def refuses(form: str, a, b, sizes_E) -> str | None:
  """Why the kernel of a form does not take these arguments, if so."""
  if a.dtype not in (jnp.float32, jnp.bfloat16) or a.dtype != b.dtype:
    return f'it takes float32 or bfloat16 for both, not {a.dtype} and {b.dtype}'
  problem = Problem.of(form, a, b, sizes_E)
  tiles = tile_shapes.settle(problem, None, None)
  scalars = visits.most(problem.rows, tiles.rows, problem.groups)
  scalars += 2 * problem.groups + 3
  if 4 * scalars > MOST_SCALAR_BYTES:
    return (
      f'{problem.rows} rows in {problem.groups} groups need {4 * scalars} '
      f'bytes of scalars and there are {MOST_SCALAR_BYTES}'
    )
  return None


def _rows(form, a, w_EDF, sizes_E, tiles, chip, interpret):
  """NN and NT: one kernel, which contracts another axis of the matrix."""
  p = Problem.of(form, a, w_EDF, sizes_E)
  tiles = tile_shapes.settle(p, tiles, chip)
  plan = visits.with_rest(sizes_E, p.rows, tiles.rows)
  (inner, outer), (k, c) = p.axes, tiles.axes(form)
  k_tiles, c_tiles = pl.cdiv(inner, k), pl.cdiv(outer, c)
  inner_last = (form == 'nt') != _swapped(p)
  if _swapped(p):
    w_EDF = jnp.swapaxes(w_EDF, 1, 2)

  def row_tile(v, group_V, shift, starts):
    # Steps that only store zeros keep the tile that was read last.
    # (`//` would ask the host for its chip, to find the sign.)
    last = lax.div(jnp.maximum(starts[p.groups] - 1, 0), jnp.int32(tiles.rows))
    return jnp.minimum(v + shift[group_V[v]], last)

  def deep(v, i, group_V):
    return jnp.where(group_V[v] < p.groups, i, k_tiles - 1)

  def a_block(j, v, i, *scalars):
    return row_tile(v, *scalars), deep(v, i, scalars[0])

  def w_block(j, v, i, group_V, *_):
    e, i = jnp.minimum(group_V[v], p.groups - 1), deep(v, i, group_V)
    return (e, j, i) if inner_last else (e, i, j)

  def out_block(j, v, i, group_V, shift, starts):
    return v + shift[group_V[v]], j

  w_shape = (None, c, k) if inner_last else (None, k, c)
  kernel = functools.partial(
    _rows_kernel,
    groups=p.groups,
    contract=(1, 1 if inner_last else 0),
    rest=inner % k,
  )
  return pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((p.rows, outer), a.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(c_tiles, plan.count, k_tiles),
      in_specs=[
        pl.BlockSpec((tiles.rows, k), a_block),
        pl.BlockSpec(w_shape, w_block),
      ],
      out_specs=pl.BlockSpec((tiles.rows, c), out_block),
      scratch_shapes=[pltpu.VMEM((tiles.rows, c), jnp.float32)]
      if k_tiles > 1
      else [],
    ),
    **_settings(p, tiles, chip, interpret, parallel=1),
  )(plan.group_V, plan.shift_G, plan.starts, a, w_EDF)


def _swapped(p: Problem) -> bool:
  """Whether matrices lie in memory with D as the last axis.

  The compiler lays out arguments and results so that the last axis fills its
  registers; another wish would be a copy of all matrices.
  """
  return p.f % LANES != 0 and p.d % LANES == 0


def _rows_kernel(
  group_V, shift, starts, a, w, out, *scratch, groups, contract, rest
):
  """One tile of rows times one block of one matrix."""
  v, k, last_k = pl.program_id(1), pl.program_id(2), pl.num_programs(2) - 1
  group = group_V[v]
  begin, end = _inside(v, group, shift, starts, out.shape[0])
  live = group < groups
  whole = live & (begin <= 0) & (end >= out.shape[0])

  def product(rows=slice(None), valid=None):
    left, right = a[rows, :], w[...]
    if valid is not None:  # past the end of the contracted axis all may lie
      left = keep(left, 1, 0, valid)
      right = keep(right, contract[1], 0, valid)
    return dot(left, right, contract)

  def store_own(start, size, value):
    rows = pl.ds(start, size)
    others = out[rows, :].astype(jnp.float32)
    own = between(value.shape, 0, begin - start, end - start)
    out[rows, :] = jnp.where(own, value, others).astype(out.dtype)

  # The group that owns a tile's first row comes first, and clears it.
  @pl.when((k == 0) & (begin <= 0) & ~whole)
  def _():
    out[...] = jnp.zeros_like(out)

  if not scratch:

    @pl.when(whole)
    def _():
      out[...] = product().astype(out.dtype)

    @_for_pieces(live & ~whole, begin, end, out)
    def _(start, size):
      store_own(start, size, product(pl.ds(start, size)))

    return
  (acc,) = scratch

  @pl.when(whole & (k == 0))
  def _():
    acc[...] = product()

  @pl.when(whole & (k > 0) & (k < last_k))
  def _():
    acc[...] += product()

  @pl.when(whole & (k == last_k))
  def _():
    out[...] = (acc[...] + product(valid=rest or None)).astype(out.dtype)

  @_for_pieces(live & ~whole, begin, end, out)
  def _(start, size):
    rows = pl.ds(start, size)
    valid = jnp.where(k == last_k, rest, a.shape[1]) if rest else None
    acc[rows, :] = jnp.where(k == 0, 0, acc[rows, :]) + product(rows, valid)

    @pl.when(k == last_k)
    def _():
      store_own(start, size, acc[rows, :])


def _matrices(p, tiles, chip, interpret, x_RD, y_RF, sizes_E):
  """TN: the matrix of a group stays in fast memory until its rows are done."""
  plan = visits.of_every_group(sizes_E, p.rows, tiles.rows)
  (a, d), (b, f) = (x_RD, tiles.d), (y_RF, tiles.f)
  if _swapped(p):
    (a, d), (b, f) = (b, f), (a, d)

  def tile(v, group_V, shift, _):
    return v + shift[group_V[v]]

  def out_block(i, j, v, group_V, *_):
    return group_V[v], i, j

  all_d, all_f = a.shape[1], b.shape[1]
  out = pl.pallas_call(
    _matrices_kernel,
    out_shape=jax.ShapeDtypeStruct((p.groups, all_d, all_f), a.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(pl.cdiv(all_d, d), pl.cdiv(all_f, f), plan.count),
      in_specs=[
        pl.BlockSpec((tiles.rows, d), lambda i, j, v, *s: (tile(v, *s), i)),
        pl.BlockSpec((tiles.rows, f), lambda i, j, v, *s: (tile(v, *s), j)),
      ],
      out_specs=pl.BlockSpec((None, d, f), out_block),
      scratch_shapes=[pltpu.VMEM((d, f), jnp.float32)],
    ),
    **_settings(p, tiles, chip, interpret, parallel=2),
  )(plan.group_V, plan.shift_G, plan.starts, a, b)
  return jnp.swapaxes(out, 1, 2) if _swapped(p) else out


def _matrices_kernel(group_V, shift, starts, x, y, out, acc):
  """Adds one tile's share to the matrix of one group."""
  v = pl.program_id(2)
  group, rows = group_V[v], x.shape[0]
  begin, end = _inside(v, group, shift, starts, rows)
  some = begin < end
  whole = (begin <= 0) & (end >= rows)
  first, last = begin >= 0, end <= rows

  @pl.when(whole & first)
  def _():
    acc[...] = dot(x[...], y[...], (0, 0))

  @pl.when(whole & ~first)
  def _():
    acc[...] += dot(x[...], y[...], (0, 0))

  @pl.when(some & ~whole & first)
  def _():
    acc[...] = jnp.zeros_like(acc)

  @_for_pieces(some & ~whole, begin, end, x)
  def _(start, size):
    # Both are masked: rows of no group may hold NaN.
    own = begin - start, end - start
    left = keep(x[pl.ds(start, size), :], 0, *own)
    right = keep(y[pl.ds(start, size), :], 0, *own)
    acc[...] += dot(left, right, (0, 0))

  @pl.when(last & some)
  def _():
    out[...] = acc[...].astype(out.dtype)

  @pl.when(~some)
  def _():
    out[...] = jnp.zeros_like(out)


def _inside(v, group, shift, starts, rows):
  """The first row of a group and the end of its rows, counted in the tile."""
  row = (v + shift[group]) * rows
  return starts[group] - row, starts[group + 1] - row


def _for_pieces(where, begin, end, tile):
  """Runs a function of start and size on each piece with rows of a group."""
  rows, itemsize = tile.shape[0], tile.dtype.itemsize
  part = row_parts.part_rows(rows, itemsize)

  def run(body):
    for start, size, present in row_parts.pieces(begin, end, rows, part):
      pl.when(where & present)(functools.partial(body, start, size))

  return run


def _settings(problem, tiles: TileShape, chip, interpret, parallel):
  """Arguments of `pallas_call` that do not touch the result."""
  chip = chips.current('tpu', chip)
  return dict(
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel',) * parallel
      + ('arbitrary',) * (3 - parallel),
      vmem_limit_bytes=tile_shapes.limit_bytes(problem, tiles, chip),
    ),
    cost_estimate=pl.CostEstimate(
      flops=problem.flops,
      bytes_accessed=tile_shapes.traffic_bytes(problem, tiles),
      transcendentals=0,
    ),
    interpret=interpret,
    name=f'grouped_matmul_{problem.form}',
  )
