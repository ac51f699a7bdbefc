"""The experts' feed-forward for TPU: two fused kernels among products of rows.

Forward, one kernel reads the rows of tokens once and gives hidden rows beside
the pre-activations. Backward, one gives all that follows from the gradient of
the hidden rows. What remains is as in `rows`: products of one matrix, and sums
over each token's rows.

Source: arXiv 2512.14080 section 4 (what is kept and what is recomputed).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels import chips
from pallas_kernels.expert_ffn import rows, tpu_kernels
from pallas_kernels.expert_ffn.fusible import cannot_fuse
from pallas_kernels.grouped_matmul import pallas_tpu, tile_shapes, visits

# What Pallas translates for TPU, of what activations are made of.
_SIMPLE = (
  'abs add add_any and broadcast_in_dim ceil clamp convert_element_type cos '
  'div eq erf exp exp2 floor ge gt integer_pow le log log1p logistic lt max '
  'min mul ne neg not or rsqrt select_n sign sin sqrt square sub tanh xor'
)
_DTYPES = (jnp.float32, jnp.bfloat16)


def refuses(x_ND, matrices, weights_NK, plan, *_, activation) -> str | None:
  """Why the kernels do not take these arguments, or `None`."""
  del weights_NK
  gate, _, down = matrices
  if x_ND.dtype not in _DTYPES or gate.dtype not in _DTYPES:
    return f'it takes float32 and bfloat16, not {x_ND.dtype} with {gate.dtype}'
  experts, d, f = gate.shape
  count = plan.pair_R.size
  row_RD = jax.ShapeDtypeStruct((count, d), x_ND.dtype)
  pre_RF = jax.ShapeDtypeStruct((count, f), x_ND.dtype)
  firsts = [w for w in matrices[:2] if w is not None]
  room = tile_shapes.room_bytes(chips.current('tpu'))
  for fused in (
    tpu_kernels.up_work(row_RD, firsts, plan.sizes_E, keep=True),
    tpu_kernels.down_backward_work(
      row_RD, down, [pre_RF] * len(firsts), plan.sizes_E
    ),
  ):
    tiles = fused.choose()
    needed = fused.needed_bytes(tiles)
    if needed > room:
      return f'{tiles} needs {needed} bytes of fast memory and there are {room}'
    scalars = 4 * (visits.most(count, tiles.rows, experts) + 2 * experts + 3)
    if scalars > pallas_tpu.MOST_SCALAR_BYTES:
      return (
        f'{count} rows of {experts} experts need {scalars} bytes of scalars '
        f'and there are {pallas_tpu.MOST_SCALAR_BYTES}'
      )
  return cannot_fuse(activation, _SIMPLE, 'TPU')


def forward(
  x_ND,
  matrices,
  weights_NK,
  plan,
  *,
  activation,
  keep,
  tiles=None,
  interpret=False,
):
  """-> y_ND, (gate_RF, up_RF); these are `None` unless `keep`.

  Matrices may be in a wider dtype than the tokens: no copy of `gate` and `up`
  in theirs is made. `tiles` are of the kernel.
  """
  h_RF, kept = tpu_kernels.up(
    rows.take(x_ND, plan.token_R),
    [w for w in matrices[:2] if w is not None],
    plan.sizes_E,
    activation=activation,
    keep=keep,
    tiles=tiles,
    interpret=interpret,
  )
  return rows.down(h_RF, matrices[2], weights_NK, plan), kept


def backward(
  x_ND,
  matrices,
  weights_NK,
  plan,
  kept,
  dy_ND,
  *,
  activation,
  tiles=None,
  interpret=False,
):
  """-> dx_ND, gradients of the matrices, dweights_NK."""
  dy_RD = rows.take(dy_ND, plan.token_R)
  weighted_RF, dpre, dweight_R = tpu_kernels.down_backward(
    dy_RD,
    matrices[2],
    rows.take(weights_NK.reshape(-1), plan.pair_R),
    kept,
    plan.sizes_E,
    activation=activation,
    tiles=tiles,
    interpret=interpret,
  )
  dx_ND, dmatrices = rows.products_backward(
    x_ND, matrices, plan, dy_RD, weighted_RF, rows.pair(dpre)
  )
  dweights_NK = rows.take(dweight_R, plan.place_NK)
  return dx_ND, dmatrices, dweights_NK.astype(weights_NK.dtype)
