"""The experts' feed-forward in Triton kernels, for NVIDIA GPUs.

Forward: one kernel gathers rows of x, multiplies them by gate and up and
applies the activation; a product with down; a sum over each token's rows.
Backward: one kernel gathers rows of dy, multiplies by down^T and, with the
hidden values recomputed, gives all that follows from them; the gradients of
down, and of gate and up together, gather as they read; a product with gate^T
and up^T; the same sum. Arrays with a row of width D for every pair exist only
between a product and the sum after it.

Source: arXiv 2512.14080 section 4.
Differs: gate and up are separate matrices, not interleaved rows of one.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from pallas_kernels.expert_ffn import gpu_kernels as kernels
from pallas_kernels.expert_ffn.gpu_activation import cannot_fuse
from pallas_kernels.expert_ffn.rows import pair
from pallas_kernels.grouped_matmul.gpu_schedule import bounds
from pallas_kernels.grouped_matmul.gpu_tiles import Product, Tiles, settle
from pallas_kernels.grouped_matmul.pallas_gpu import sum_of_rows, too_large

OP = 'expert_ffn.triton'


def refuses(x_ND, matrices, weights_NK, plan, *_, activation) -> str | None:
  """Why the kernels do not take these arguments, or `None`."""
  del weights_NK
  if x_ND.dtype not in (jnp.float32, jnp.bfloat16):
    return f'it takes float32 and bfloat16, not {x_ND.dtype}'
  return too_large(x_ND, plan.pair_R) or cannot_fuse(activation)


def forward(
  x_ND,
  matrices,
  weights_NK,
  plan,
  *,
  activation,
  keep,
  tiles: Mapping[str, Tiles] | None = None,
  interpret=False,
):
  """-> y_ND, (gate_RF, up_RF); these are `None` unless `keep`.

  Rows of no expert in gate_RF and up_RF are not set.
  """
  tiles = layer_tiles(x_ND, matrices, plan, tiles)
  a_RF, kept = kernels.up(
    x_ND,
    _firsts(matrices),
    plan,
    activation=activation,
    keep=keep,
    tiles=tiles['up'],
    interpret=interpret,
  )
  y_RD = kernels.down(
    a_RF, matrices[2], plan, tiles=tiles['down'], interpret=interpret
  )
  total = _total(plan)
  y_ND = kernels.combine(y_RD, weights_NK, plan, total, interpret=interpret)
  return y_ND, kept


def backward(
  x_ND,
  matrices,
  weights_NK,
  plan,
  kept,
  dy_ND,
  *,
  activation,
  tiles: Mapping[str, Tiles] | None = None,
  interpret=False,
):
  """-> dx_ND, gradients of the matrices, dweights_NK."""
  tiles = layer_tiles(x_ND, matrices, plan, tiles)
  firsts, total = _firsts(matrices), _total(plan)
  weighted_RF, d_pre, part_CR = kernels.down_backward(
    dy_ND,
    matrices[2],
    weights_NK.reshape(-1)[plan.pair_R],
    kept,
    plan,
    activation=activation,
    tiles=tiles['dh'],
    interpret=interpret,
  )
  (dw_down,) = sum_of_rows(
    weighted_RF,
    (dy_ND,),
    plan.sizes_E,
    b_at=plan.token_R,
    tiles=tiles['dw_down'],
    interpret=interpret,
    name='expert_dw_down',
  )
  dw_first = sum_of_rows(
    x_ND,
    d_pre,
    plan.sizes_E,
    a_at=plan.token_R,
    tiles=tiles['dw_first'],
    interpret=interpret,
    name='expert_dw_first',
  )
  dx_RD = kernels.first_backward(
    d_pre, firsts, plan, tiles=tiles['dx'], interpret=interpret
  )
  dx_ND = kernels.combine(dx_RD, None, plan, total, interpret=interpret)
  # Rows of no expert were never written, by anyone.
  dweights_NK = jnp.where(
    plan.place_NK < total, part_CR.sum(0)[plan.place_NK], 0
  )
  dmatrices = (*pair(dw_first), dw_down)
  return dx_ND, dmatrices, dweights_NK.astype(weights_NK.dtype)


def layer_products(sizes, dtype, gated=True) -> dict[str, Product]:
  """What each kernel computes; `sizes` are rows, experts, D, F."""
  rows, experts, d, f = sizes
  rows, two = -(-rows // experts), 1 + gated
  shapes = {
    'up': dict(m=rows, n=f, k=d, rights=two),
    'down': dict(m=rows, n=d, k=f),
    'dh': dict(m=rows, n=f, k=d, heavy=True),
    'dw_down': dict(m=f, n=d, k=rows),
    'dw_first': dict(m=d, n=f, k=rows, rights=two),
    'dx': dict(m=rows, n=d, k=f, lefts=two, rights=two),
  }
  return {name: Product(dtype=dtype, **shape) for name, shape in shapes.items()}


def layer_tiles(x_ND, matrices, plan, tiles=None) -> dict[str, Tiles]:
  """Tiles of each kernel, measured or by rule where `tiles` names none.

  Raises:
    ValueError: an unknown kernel, or tiles that need more shared memory than
      the chip has.
  """
  sizes = plan.pair_R.size, *matrices[0].shape
  products = layer_products(sizes, x_ND.dtype, matrices[1] is not None)
  tiles = tiles or {}
  unknown = set(tiles) - set(products)
  if unknown:
    raise ValueError(
      f'tiles names {", ".join(sorted(unknown))}; the kernels are '
      f'{", ".join(products)}.'
    )
  return {
    name: settle(OP, name, sizes, tiles.get(name), p)
    for name, p in products.items()
  }


def _firsts(matrices):
  return tuple(w for w in matrices[:2] if w is not None)


def _total(plan) -> jax.Array:
  """int32 [1]: how many pairs have an expert."""
  return bounds(plan.sizes_E, plan.pair_R.size)[1][-1:]
