"""The layer in Triton with gathers and scatters inside of grouped products.

Forward no sorted copy of the tokens exists: a product reads tokens where they
are, and one writes rows where they belong. The backward pass copies tokens and
gradients in the order of experts, and the experts' outputs are kept for the
gradient of the weights.

Source: arXiv 2403.08245 sections 3.1 and 3.2.
Differs: tiles are found on the device, so that nothing waits for the host.
"""

import os

import torch
import triton
import triton.language as tl

ROWS = 128  # of a tile; smaller ones of small groups are masked
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
CONFIGS = [
  triton.Config({'COLUMNS': columns, 'DEPTH': depth}, stages, warps)
  for columns, depth, stages, warps in (
    (128, 32, 4, 4),
    (128, 64, 3, 4),
    (128, 64, 4, 8),
    (256, 64, 3, 8),
  )
]
if INTERPRETED:
  CONFIGS = [triton.Config({'COLUMNS': 16, 'DEPTH': 16})]
  ROWS = 16
tuned = triton.autotune(CONFIGS, key=['inner', 'outer'])


@tuned
@triton.jit
def _rows_times_matrices(
  x,
  w,
  out,
  source_R,
  target_R,
  group_J,
  start_J,
  end_J,
  inner,
  outer,
  w_inner_stride,
  w_outer_stride,
  ROWS: tl.constexpr,
  COLUMNS: tl.constexpr,
  DEPTH: tl.constexpr,
):
  """out[target_r] = x[source_r] w_e, for a tile of rows of one expert e."""
  tile = tl.program_id(1)
  start, end = tl.load(start_J + tile), tl.load(end_J + tile)
  if start >= end:
    return
  row = start + tl.arange(0, ROWS)
  live = row < end
  source = tl.load(source_R + row, mask=live, other=0).to(tl.int64)
  target = tl.load(target_R + row, mask=live, other=0).to(tl.int64)
  column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
  inside = column < outer
  w += tl.load(group_J + tile).to(tl.int64) * inner * outer
  total = tl.zeros((ROWS, COLUMNS), tl.float32)
  for first in range(0, inner, DEPTH):
    k = first + tl.arange(0, DEPTH)
    a = tl.load(
      x + source[:, None] * inner + k[None, :],
      mask=live[:, None] & (k < inner)[None, :],
      other=0.0,
    )
    b = tl.load(
      w + k[:, None] * w_inner_stride + column[None, :] * w_outer_stride,
      mask=(k < inner)[:, None] & inside[None, :],
      other=0.0,
    )
    total = tl.dot(a, b, total, input_precision='ieee')
  tl.store(
    out + target[:, None] * outer + column[None, :],
    total.to(out.dtype.element_ty),
    mask=live[:, None] & inside[None, :],
  )


@tuned
@triton.jit
def _sums_of_rows(
  x,
  y,
  out,
  ends_E,
  inner,
  outer,
  ROWS: tl.constexpr,
  COLUMNS: tl.constexpr,
  DEPTH: tl.constexpr,
):
  """out_e = sum over the sorted rows r of expert e of x_r^T y_r."""
  e = tl.program_id(2)
  start = tl.load(ends_E + e - 1, mask=e > 0, other=0)
  end = tl.load(ends_E + e)
  line = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
  column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
  total = tl.zeros((ROWS, COLUMNS), tl.float32)
  for first in range(start, end, DEPTH):
    row = first + tl.arange(0, DEPTH)
    at = row.to(tl.int64)
    a = tl.load(
      x + at[None, :] * inner + line[:, None],
      mask=(row < end)[None, :] & (line < inner)[:, None],
      other=0.0,
    )
    b = tl.load(
      y + at[:, None] * outer + column[None, :],
      mask=(row < end)[:, None] & (column < outer)[None, :],
      other=0.0,
    )
    total = tl.dot(a, b, total, input_precision='ieee')
  tl.store(
    out
    + e.to(tl.int64) * inner * outer
    + line[:, None] * outer
    + column[None, :],
    total.to(out.dtype.element_ty),
    mask=(line < inner)[:, None] & (column < outer)[None, :],
  )


class Plan:
  """Pairs in the order of experts, and tiles of rows of one expert.

  Attributes:
    pair_R: int32, each sorted pair.
    token_R: int32, its token.
    row_R: int32, 0, 1, 2, ...
    ends_E: int32, where the rows of each expert end.
    tiles: expert, first row and end of each tile; some are empty.
  """

  def __init__(self, ids_NK, experts):
    flat = ids_NK.flatten()
    self.pair_R = flat.argsort(stable=True).int()
    self.token_R = self.pair_R // ids_NK.shape[1]
    self.row_R = torch.arange(flat.numel(), dtype=torch.int32).to(flat.device)
    sizes_E = flat.new_zeros(experts, dtype=torch.int32)
    sizes_E.index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    self.ends_E = sizes_E.cumsum(0).int()
    tiles_E = (sizes_E + ROWS - 1) // ROWS
    tile_ends_E = tiles_E.cumsum(0)
    # As many as there may be, whatever the sizes.
    tile_J = torch.arange(flat.numel() // ROWS + experts).to(flat.device)
    group_J = torch.searchsorted(tile_ends_E, tile_J, right=True)
    exists_J = group_J < experts
    group_J = group_J.clamp(max=experts - 1)
    within_J = tile_J - (tile_ends_E - tiles_E)[group_J]
    start_J = (self.ends_E - sizes_E)[group_J] + within_J * ROWS
    end_J = torch.where(exists_J, self.ends_E[group_J], start_J)
    self.tiles = group_J.int(), start_J.int(), end_J.int()


def rows_times_matrices(x, w, plan, source_R, target_R, transposed=False):
  """[R, outer]: see the kernel; w is [E, inner, outer], or transposed."""
  inner, outer = w.shape[:0:-1] if transposed else w.shape[1:]
  strides = w.stride()[:0:-1] if transposed else w.stride()[1:]
  out = x.new_empty(source_R.numel(), outer)
  _rows_times_matrices[
    lambda config: (
      triton.cdiv(outer, config['COLUMNS']),
      plan.tiles[0].numel(),
    )
  ](
    *(x, w, out, source_R, target_R, *plan.tiles, inner, outer, *strides),
    ROWS=ROWS,
  )
  return out


def sums_of_rows(x_RD, y_RF, plan):
  """[E, D, F], of rows in the order of experts."""
  (inner, outer), experts = (x_RD.shape[1], y_RF.shape[1]), len(plan.ends_E)
  out = x_RD.new_empty(experts, inner, outer)
  _sums_of_rows[
    lambda config: (
      triton.cdiv(outer, config['COLUMNS']),
      triton.cdiv(inner, ROWS),
      experts,
    )
  ](x_RD, y_RF, out, plan.ends_E, inner, outer, ROWS=ROWS)
  return out


class _Gathered(torch.autograd.Function):
  """[R, F]: the token of each sorted row times its expert's matrix."""

  @staticmethod
  def forward(ctx, x, w, plan):
    ctx.plan = plan
    ctx.save_for_backward(x, w)
    return rows_times_matrices(x, w, plan, plan.token_R, plan.row_R)

  @staticmethod
  def backward(ctx, dy):
    (x, w), plan = ctx.saved_tensors, ctx.plan
    dy = dy.contiguous()
    dw = sums_of_rows(x[plan.token_R], dy, plan)
    dx = rows_times_matrices(dy, w, plan, plan.row_R, plan.pair_R, True)
    return dx.view(len(x), -1, x.shape[1]).sum(1), dw, None


class _Scattered(torch.autograd.Function):
  """[N, D]: the weighted sum of sorted rows times their expert's matrix."""

  @staticmethod
  def forward(ctx, a, w, weights, plan):
    y = rows_times_matrices(a, w, plan, plan.row_R, plan.pair_R)
    ctx.plan = plan
    ctx.save_for_backward(a, w, weights, y)
    return _weighted(y, weights)

  @staticmethod
  def backward(ctx, dy):
    (a, w, weights, y), plan = ctx.saved_tensors, ctx.plan
    y = y.view(*weights.shape, -1)
    dweights = (y @ dy[:, :, None])[..., 0].to(weights.dtype)
    dy_RD = dy[plan.token_R] * weights.flatten()[plan.pair_R, None].to(dy.dtype)
    dw = sums_of_rows(a, dy_RD, plan)
    da = rows_times_matrices(dy_RD, w, plan, plan.row_R, plan.row_R, True)
    return da, dw, dweights, None


def _weighted(y, weights):
  y = y.view(*weights.shape, -1)
  return (weights[:, None].to(y.dtype) @ y)[:, 0]


def layer(x, first, down, ids, weights):
  """As `torch_side.layer`; `first` is gate and up side by side."""
  plan = Plan(ids, first.shape[0])
  gate_RF, up_RF = _Gathered.apply(x, first, plan).chunk(2, 1)
  a = torch.nn.functional.silu(gate_RF) * up_RF
  return _Scattered.apply(a, down, weights, plan)
