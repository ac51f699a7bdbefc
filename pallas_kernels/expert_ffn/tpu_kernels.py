"""The kernels of the experts' feed-forward on TPU.

Each multiplies a tile of sorted rows by blocks of one expert's matrices and,
once the whole width D is summed, does all that follows row by row, so that
products and activation share one pass. Steps are those of `grouped_matmul`'s
kernels: scalars tell the tile and the expert.

Matrices are cast to the dtype of the rows block by block, in fast memory.

Source: arXiv 2512.14080 section 4.
Differs: rows are gathered before the kernel, as a TPU moves whole tiles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import chips
from pallas_kernels.expert_ffn.rows import hidden, pair
from pallas_kernels.expert_ffn.tpu_tiles import Fused
from pallas_kernels.grouped_matmul import tile_shapes, tpu_parts, visits
from pallas_kernels.grouped_matmul.tile_shapes import LANES, Problem


def up(x_RD, firsts, sizes_E, *, activation, keep, tiles=None, interpret=False):
  """-> h_RF, (gate_RF, up_RF or None) or (None, None) unless `keep`.

  h = activation(x gate) * (x up); `firsts` are the matrices gate and, if there
  is one, up. Rows of no expert give zeros.
  """
  fused, dtype = up_work(x_RD, firsts, sizes_E, keep), x_RD.dtype

  def finish(products, _, __):
    pre = [p.astype(dtype) for p in products]
    return hidden(activation, *pair(pre)), *pre[: keep * len(pre)]

  call = _Call(fused, finish, tiles, interpret)
  h_RF, *kept = call(x_RD, firsts, (), sizes_E)
  return h_RF, pair(kept) if keep else (None, None)


def down_backward(
  dy_RD,
  w_EFD,
  weight_R,
  kept,
  sizes_E,
  *,
  activation,
  tiles=None,
  interpret=False,
):
  """-> weighted h_RF, gradients of the pre-activations, dweight_R in f32.

  With h = hidden(gate, up) recomputed and dh = dy W^T, the gradient of a
  weight is <dh, h>. The gradients take the place of gate_RF and up_RF. Rows of
  no expert give zeros.
  """
  kept = [a for a in kept if a is not None]
  fused = down_backward_work(dy_RD, w_EFD, kept, sizes_E)
  width = w_EFD.shape[1]

  def finish(products, refs, first):
    (dh,), (weight, *pre) = products, refs
    pre = [p[...].astype(jnp.float32) for p in pre]
    h, pull = jax.vjp(lambda *pre: hidden(activation, *pair(pre)), *pre)
    weight = _column(weight[...])
    dpre = pull(dh * weight)
    each = dh * h
    if width % each.shape[1]:  # past the last column anything may lie
      each = tpu_parts.keep(each, 1, 0, width - first)
    return *dpre, h * weight, _row_of_sums(each)

  call = _Call(fused, finish, tiles, interpret)
  *dpre, weighted_RF, dweight_R = call(
    dy_RD, (w_EFD,), kept, sizes_E, weight_R=weight_R
  )
  return weighted_RF, dpre, dweight_R


def up_work(x_RD, firsts, sizes_E, keep) -> Fused:
  problem = Problem.of('nn', x_RD, firsts[0], sizes_E)
  count = len(firsts)
  arrays, bytes_ = 1 + keep * count, firsts[0].dtype.itemsize
  return Fused('up', problem, count, bytes_, arrays, values=2)


def down_backward_work(dy_RD, w_EFD, kept, sizes_E) -> Fused:
  problem = Problem.of('nt', dy_RD, w_EFD, sizes_E)
  arrays = 2 * len(kept) + 1
  return Fused('dh', problem, 1, w_EFD.dtype.itemsize, arrays, values=6)


@dataclasses.dataclass(frozen=True)
class _Call:
  """One kernel.

  Attributes:
    fused: its name and sizes.
    finish: (products, references to what else is read, first column) -> what
      is written, row by row.
    tiles: block sizes, or `None` for those of the chip.
    interpret: see `pallas_call`.
  """

  fused: Fused
  finish: Callable
  tiles: tile_shapes.TileShape | None
  interpret: object

  def __call__(self, a, matrices, more_RF, sizes_E, weight_R=None):
    """Results [R, F]; with weights, the first of `more_RF` in their place.

    With `weight_R`, `finish` reads it first, and writes an f32 for each row
    last, which is summed over blocks of columns.
    """
    p, chip = self.fused.problem, chips.current('tpu')
    tiles = self.fused.choose(chip)
    if self.tiles is not None:
      tiles = tile_shapes.settle(p, self.tiles, chip)
    plan = visits.with_rest(sizes_E, p.rows, tiles.rows)
    (inner, outer), (k, c) = p.axes, tiles.axes(p.form)
    c_tiles, k_tiles = pl.cdiv(outer, c), pl.cdiv(inner, k)
    row_tiles = pl.cdiv(p.rows, tiles.rows)
    inner_last = p.form == 'nt'
    if p.f % LANES and p.d % LANES == 0:
      # Matrices lie in memory with the other axis last; see grouped_matmul.
      inner_last = not inner_last
      matrices = [jnp.swapaxes(w, 1, 2) for w in matrices]

    def row_tile(v, group_V, shift, starts):
      # Steps that only store zeros keep the tile that was read last.
      last = jnp.maximum(starts[p.groups] - 1, 0)
      last = lax.div(last, jnp.int32(tiles.rows))
      return jnp.minimum(v + shift[group_V[v]], last)

    def deep(v, i, group_V):
      return jnp.where(group_V[v] < p.groups, i, k_tiles - 1)

    def a_block(j, v, i, *scalars):
      return row_tile(v, *scalars), deep(v, i, scalars[0])

    def w_block(j, v, i, group_V, *_):
      e, i = jnp.minimum(group_V[v], p.groups - 1), deep(v, i, group_V)
      return (e, j, i) if inner_last else (e, i, j)

    def out_tile(v, group_V, shift, _):
      return v + shift[group_V[v]]

    w_shape = (None, c, k) if inner_last else (None, k, c)
    block = tiles.rows, c
    more = [
      pl.BlockSpec(block, lambda j, v, i, *s: (row_tile(v, *s), j))
      for _ in more_RF
    ]
    weight = weight_R is not None
    count = self.fused.arrays - len(more)
    shapes = [jax.ShapeDtypeStruct((p.rows, outer), a.dtype)] * count
    outs = [pl.BlockSpec(block, lambda j, v, i, *s: (out_tile(v, *s), j))]
    outs *= count
    if weight:
      line = (None, 1, tiles.rows)
      more.insert(
        0, pl.BlockSpec(line, lambda j, v, i, *s: (row_tile(v, *s), 0, 0))
      )
      weight_R = jnp.pad(weight_R, (0, row_tiles * tiles.rows - p.rows))
      more_RF = (weight_R.reshape(row_tiles, 1, tiles.rows), *more_RF)
      shape = c_tiles, row_tiles, 1, tiles.rows
      shapes.append(jax.ShapeDtypeStruct(shape, jnp.float32))
      outs.append(
        pl.BlockSpec(
          (None, *line), lambda j, v, i, *s: (j, out_tile(v, *s), 0, 0)
        )
      )
    first = 3 + 1 + len(matrices) + weight
    found = pl.pallas_call(
      functools.partial(
        _kernel,
        groups=p.groups,
        contract=(1, 1 if inner_last else 0),
        rest=inner % k,
        counts=(len(matrices), len(more), len(outs)),
        finish=self.finish,
        line=weight,
      ),
      out_shape=shapes,
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(c_tiles, plan.count, k_tiles),
        in_specs=[pl.BlockSpec((tiles.rows, k), a_block)]
        + [pl.BlockSpec(w_shape, w_block)] * len(matrices)
        + more,
        out_specs=outs,
        scratch_shapes=[pltpu.VMEM(block, jnp.float32)]
        * (len(matrices) if k_tiles > 1 else 0),
      ),
      # A block is read before any of it is written, and not again.
      input_output_aliases={first + i: i for i in range(len(more) - weight)},
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
        vmem_limit_bytes=self.fused.limit_bytes(tiles, chip),
      ),
      cost_estimate=pl.CostEstimate(
        flops=self.fused.flops,
        bytes_accessed=self.fused.traffic_bytes(tiles),
        transcendentals=p.rows * outer,
      ),
      interpret=self.interpret,
      name=f'expert_{self.fused.name}',
    )(plan.group_V, plan.shift_G, plan.starts, a, *matrices, *more_RF)
    if not weight:
      return found
    *found, parts = found
    return *found, parts.sum(0).reshape(-1)[: p.rows]


def _kernel(
  group_V, shift, starts, a, *refs, groups, contract, rest, counts, finish, line
):
  """One tile of rows times one block of each matrix of one expert."""
  ends = [sum(counts[: i + 1]) for i in range(3)]
  ws, more = refs[: ends[0]], refs[ends[0] : ends[1]]
  outs, sums = refs[ends[1] : ends[2]], refs[ends[2] :]
  v, k, last_k = pl.program_id(1), pl.program_id(2), pl.num_programs(2) - 1
  column = pl.program_id(0) * outs[0].shape[1]
  group = group_V[v]
  row = (v + shift[group]) * a.shape[0]
  begin, end = starts[group], starts[group + 1]
  whole = (begin <= row) & (row + a.shape[0] <= end)

  def products(tail=False):
    left = a[...]
    if tail:  # past the end of the contracted axis anything may lie
      left = tpu_parts.keep(left, 1, 0, rest)
    for w in ws:
      right = w[...].astype(left.dtype)
      if tail:
        right = tpu_parts.keep(right, contract[1], 0, rest)
      yield tpu_parts.dot(left, right, contract)

  def store(values):
    values = finish(values, more, column)

    @pl.when(whole)
    def _():
      for out, value in zip(outs, values, strict=True):
        out[...] = value.astype(out.dtype)

    @pl.when(~whole)
    def _():
      for out, value in zip(outs, values, strict=True):
        # The group that owns a tile's first row comes first, and clears it.
        others = jnp.where(begin <= row, 0, out[...].astype(jnp.float32))
        along = 1 if line and out is outs[-1] else 0
        own = tpu_parts.between(value.shape, along, begin - row, end - row)
        out[...] = jnp.where(own, value, others).astype(out.dtype)

  @pl.when((group == groups) & (k == 0))
  def _():
    for out in outs:
      out[...] = jnp.zeros_like(out)

  live = group < groups
  if not sums:
    pl.when(live)(lambda: store(list(products())))
    return

  @pl.when(live & (k == 0))
  def _():
    for acc, value in zip(sums, products(), strict=True):
      acc[...] = value

  @pl.when(live & (k > 0) & (k < last_k))
  def _():
    for acc, value in zip(sums, products(), strict=True):
      acc[...] += value

  @pl.when(live & (k == last_k))
  def _():
    found = products(tail=rest > 0)
    store([acc[...] + value for acc, value in zip(sums, found, strict=True)])


def _column(row):
  """[R, 1] from [1, R]."""
  return row.reshape(row.shape[1], 1)


def _row_of_sums(a):
  """[1, R]: the sum of each row of [R, C]; a product turns it into a row."""
  ones = jnp.ones((8, a.shape[1]), a.dtype)
  sums = lax.dot_general(
    ones,
    a,
    (((1,), (1,)), ((), ())),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  return sums[:1]
