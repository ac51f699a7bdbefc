"""The kernels of the experts' feed-forward on NVIDIA GPUs.

Rows of tokens are gathered as they are read, so no sorted copy of them exists.
What leaves a kernel in the order of experts is never scattered from inside of
it: on Hopper that costs a matrix product a fifth of its speed, more than
`combine`, which reads each token's rows afterwards.

Source: arXiv 2512.14080 section 4.
"""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.expert_ffn.rows import hidden, pair
from pallas_kernels.grouped_matmul import gpu_parts as parts
from pallas_kernels.grouped_matmul.gpu_schedule import place, schedule
from pallas_kernels.grouped_matmul.gpu_tiles import Tiles
from pallas_kernels.grouped_matmul.pallas_gpu import call


def over_rows(body, name, tables, args, columns, outs, plan, tiles, interpret):
  """Calls `body` for each block of rows of one expert by columns.

  Args:
    body: (tile, *references of tables, args and outs) -> None.
    name: of the kernel.
    tables: arrays of one axis.
    args: arrays.
    columns: of the result.
    outs: shapes and dtypes of results; each may have rows that are not
      written, those of no expert.
    plan: of pairs.
    tiles: block sizes.
    interpret: runs on any platform, slowly.
  """
  rows = plan.pair_R.size
  cut = schedule(plan.sizes_E, rows, tiles.block_m, rest=False)
  grid = cut.group_J.size, -(-columns // tiles.block_n)

  def kernel(group_J, start_J, live_J, *refs):
    j, column = place(pl.program_id(0), *grid)
    live = live_J[j]

    @pl.when(live > 0)
    def _():
      body(_Block(group_J[j], start_J[j], live, column, columns, tiles), *refs)

  args = (*cut, *tables, *args)
  outs = [parts.shaped(*out, args) for out in outs]
  # Each row is multiplied with one matrix of every stack.
  flops = 2 * rows * sum(a[0].size for a in args if a.ndim == 3)
  return call(kernel, name, grid, outs, tiles, interpret, flops)(*args)


class _Block:
  """A block of the result, inside of a kernel.

  Attributes:
    group: its expert.
    number: which block of columns it is.
    rows: int32 [block_m]; past the block's own they repeat its last.
    at: int32 [block_m]; past the block's own they go on.
    own: which rows are the block's own.
    columns: int32 [block_n], may go past the last.
    keep: bool [block_m, block_n], rows and columns that exist.
    keep_columns: bool [block_n], or `None` if all exist.
  """

  def __init__(self, group, start, live, number, columns, tiles: Tiles):
    row = parts.numbers(0, tiles.block_m)
    self.group, self.number, self.tiles = group, number, tiles
    self.first, self.end = number * tiles.block_n, columns
    self.rows = start + jnp.minimum(row, live - 1)
    self.at = start + row
    self.own = row < live
    self.columns = parts.numbers(self.first, tiles.block_n)
    self.keep_columns = parts.inside(self.columns, columns, tiles.block_n)
    self.keep = parts.both(self.own, self.keep_columns)

  def products(self, a_refs, b_refs, *, rows=None, transposed=False):
    """See `parts.rows_times_matrices`; `rows` of a are the block's own."""
    rows = self.rows if rows is None else rows
    return parts.rows_times_matrices(
      a_refs,
      rows,
      b_refs,
      self.group,
      self.columns,
      self.tiles,
      transposed=transposed,
    )

  def pieces(self, *values):
    """The block and its values in pieces of few columns.

    What follows a product may hold many numbers for each one of the result:
    it goes over 16 of them for each thread at a time, or registers spill.
    """
    m, n = values[0].shape
    width = min(max(16 * 32 * self.tiles.num_warps // m, 16), n)
    values = [jnp.split(value, n // width, axis=1) for value in values]
    for i, each in enumerate(zip(*values, strict=True)):
      piece = copy.copy(self)
      piece.columns = parts.numbers(self.first + i * width, width)
      if self.keep_columns is not None:
        piece.keep_columns = piece.columns < self.end
      piece.keep = parts.both(self.own, piece.keep_columns)
      yield piece, *each

  def store(self, ref, value):
    parts.store(ref, self.at, self.columns, value, self.keep)

  def load(self, ref):
    return parts.load(
      ref, self.rows, self.columns, parts.both(None, self.keep_columns)
    )


def up(x_ND, firsts, plan, *, activation, keep, tiles, interpret=False):
  """-> a_RF, (gate_RF, up_RF or None) or (None, None) unless `keep`.

  a = activation(x gate) * (x up), of the gathered rows of x; `firsts` are the
  matrices gate and, if there is one, up.
  """
  dtype, width = x_ND.dtype, firsts[0].shape[2]

  def body(block, token_R, x_ref, *refs):
    w_refs, outs = refs[: len(firsts)], refs[len(firsts) :]
    token = plgpu.load(token_R.at[block.rows])
    sums = block.products((x_ref,), w_refs, rows=token)
    for piece, *pre in block.pieces(*sums):
      pre = [p.astype(dtype) for p in pre]
      piece.store(outs[0], hidden(activation, *pair(pre)))
      for out, value in zip(outs[1:], pre, strict=keep):
        piece.store(out, value)

  outs = [((plan.pair_R.size, width), dtype)]
  outs *= 1 + (len(firsts) if keep else 0)
  tables, args = (plan.token_R,), (x_ND, *firsts)
  a_RF, *kept = over_rows(
    body, 'expert_up', tables, args, width, outs, plan, tiles, interpret
  )
  return a_RF, pair(kept) if keep else (None, None)


def down(a_RF, w_EFD, plan, *, tiles, interpret=False):
  """[R, D]: each row times its expert's matrix."""
  width = w_EFD.shape[2]

  def body(block, a_ref, w_ref, out):
    (y,) = block.products((a_ref,), (w_ref,))
    block.store(out, y)

  outs = [((a_RF.shape[0], width), a_RF.dtype)]
  (y_RD,) = over_rows(
    body, 'expert_down', (), (a_RF, w_EFD), width, outs, plan, tiles, interpret
  )
  return y_RD


def down_backward(
  dy_ND,
  w_EFD,
  weight_R,
  kept,
  plan,
  *,
  activation,
  tiles,
  interpret=False,
):
  """-> weighted a_RF, gradients of (gate_RF, up_RF), parts of dweight [C, R].

  With a = hidden(gate, up) recomputed and da = dy W^T of the gathered rows of
  dy, the gradient of a weight is <da, a>; block c of columns gives part c.
  """
  dtype, width = dy_ND.dtype, w_EFD.shape[1]
  kept = [a for a in kept if a is not None]

  def body(block, token_R, weight_ref, dy_ref, w_ref, *refs):
    pre_refs, (weighted, *d_pre, part) = refs[: len(kept)], refs[len(kept) :]
    token = plgpu.load(token_R.at[block.rows])
    (whole,) = block.products((dy_ref,), (w_ref,), rows=token, transposed=True)
    weight = plgpu.load(weight_ref.at[block.rows])[:, None]
    dweight = jnp.zeros((tiles.block_m,), jnp.float32)
    for piece, da in block.pieces(whole):
      pre = [piece.load(ref) for ref in pre_refs]
      a, pull = jax.vjp(lambda *pre: hidden(activation, *pair(pre)), *pre)
      for ref, value in zip(d_pre, pull(da * weight), strict=True):
        piece.store(ref, value)
      piece.store(weighted, a * weight)
      if piece.keep_columns is not None:
        a = jnp.where(piece.keep_columns[None, :], a, 0)
      dweight += (da * a).sum(1)
    plgpu.store(part.at[block.number, block.at], dweight, mask=block.own)

  rows, columns = plan.pair_R.size, -(-width // tiles.block_n)
  outs = [((rows, width), dtype)] * (1 + len(kept))
  outs.append(((columns, rows), jnp.float32))
  tables, args = (plan.token_R, weight_R), (dy_ND, w_EFD, *kept)
  weighted, *d_pre, part = over_rows(
    body, 'expert_dh', tables, args, width, outs, plan, tiles, interpret
  )
  return weighted, d_pre, part


def first_backward(d_pre, firsts, plan, *, tiles, interpret=False):
  """[R, D]: the gradient of the gathered rows of x, gate's and up's summed."""
  width = firsts[0].shape[1]

  def body(block, *refs):
    *refs, out = refs
    count = len(firsts)
    (dx,) = block.products(refs[:count], refs[count:], transposed=True)
    block.store(out, dx)

  outs = [((plan.pair_R.size, width), d_pre[0].dtype)]
  args = (*d_pre, *firsts)
  (dx_RD,) = over_rows(
    body, 'expert_dx', (), args, width, outs, plan, tiles, interpret
  )
  return dx_RD


def combine(y_RD, weights_NK, plan, total, *, interpret=False):
  """[N, D]: the sum of each token's rows, weighted unless weights are None.

  Pairs of no expert lie at `total` and after; they are not read.
  """
  n, k = plan.place_NK.shape
  width = y_RD.shape[1]
  block_n, block_d = _combine_block(width)
  tiles_n, tiles_d = -(-n // block_n), -(-width // block_d)

  def kernel(total_1, place_NK, *refs):
    *weights, y_ref, out = refs
    program = pl.program_id(0)
    token = parts.numbers(lax.div(program, tiles_d) * block_n, block_n)
    columns = parts.numbers(lax.rem(program, tiles_d) * block_d, block_d)
    keep_d = parts.inside(columns, width, block_d)
    token_in = jnp.minimum(token, n - 1)
    total = total_1[0]

    def add(j, y):
      row = plgpu.load(place_NK.at[token_in, jnp.full_like(token, j)])
      found = row < total
      each = parts.load(y_ref, row, columns, parts.both(found, keep_d))
      each = each.astype(jnp.float32)
      if weights:
        at = weights[0].at[token_in, jnp.full_like(token, j)]
        weight = plgpu.load(at, mask=found, other=0.0)
        each *= weight.astype(jnp.float32)[:, None]
      return y + each

    y = jnp.zeros((block_n, block_d), jnp.float32)
    if k <= 16:  # Straight code has all reads in flight at a time.
      for j in range(k):
        y = add(j, y)
    else:
      y = lax.fori_loop(0, k, add, y)
    keep = parts.both(parts.inside(token, n, block_n), keep_d)
    parts.store(out, token, columns, y, keep)

  weights = () if weights_NK is None else (weights_NK,)
  args = (total, plan.place_NK, *weights, y_RD)
  out = parts.shaped((n, width), y_RD.dtype, args)
  name = 'expert_combine'
  grid = (tiles_n, tiles_d)
  return call(kernel, name, grid, out, Tiles(16, 16, 16), interpret)(*args)


def _combine_block(width: int) -> tuple[int, int]:
  """Tokens and columns of a program: 16 numbers for each of 128 threads.

  Rows are read in long pieces, and without masks where that is possible.
  """
  whole = min(width & -width, 512)  # the largest power of 2 that divides it
  ceiling = max(16, 1 << (width - 1).bit_length())
  block_d = whole if whole >= 64 else min(ceiling, 512)
  return 2048 // block_d, block_d
