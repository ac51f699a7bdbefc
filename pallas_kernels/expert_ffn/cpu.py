"""The experts' feed-forward as one loop over row tiles, for CPU.

Gather, products, activation and combine happen tile by tile, in cache: no
array with a row of width D for every pair exists. On CPU a fresh large array
costs more in page faults than the arithmetic on it.

Source: arXiv 2512.14080 section 4 (what is kept and what is recomputed).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.expert_ffn.rows import hidden, take
from pallas_kernels.grouped_matmul import tiles
from pallas_kernels.grouped_matmul.tiles import (
  RowSteps,
  add_matrix,
  dot,
  matrix,
)
from pallas_kernels.tune import store

OP = 'expert_ffn.tiles'


def forward(
  x_ND,
  matrices,
  weights_NK,
  plan,
  *,
  activation,
  keep,
  steps: RowSteps | None = None,
):
  """-> y_ND, (gate_RF, up_RF); these are `None` unless `keep`."""
  rows, dtype = plan.pair_R.size, x_ND.dtype
  weight_R = take(weights_NK.reshape(-1), plan.pair_R)
  wide = jnp.promote_types(dtype, jnp.float32)

  def body(tile, carry):
    y_ND, kept = carry
    token = tile.read_all(plan.token_R)
    x = take(x_ND, token)
    pre = dot(x, _first(matrices, tile), (1, 0)).astype(dtype)
    pre = _halves(pre, matrices)
    h = hidden(activation, *pre).astype(dtype)
    y = dot(h, matrix(matrices[2], tile), (1, 0))
    y *= tile.read_all(weight_R)[:, None]
    y_ND = _add_rows(y_ND, token, tile.mask(y))
    if keep:
      kept = [
        None if p is None else tile.write(a, p)
        for a, p in zip(kept, pre, strict=True)
      ]
    return y_ND, kept

  kept = [None, None]
  if keep:
    # Rows of no expert are never written, nor read but to be masked.
    kept = [
      None if w is None else lax.empty((rows, w.shape[2]), dtype)
      for w in matrices[:2]
    ]
  start = jnp.zeros(x_ND.shape, wide), kept
  steps = steps or _steps('forward', rows, matrices, dtype)
  cut = tiles.cut(plan.sizes_E, rows, steps)
  y_ND, kept = tiles.for_each(cut, rows, body, start)
  return y_ND.astype(dtype), tuple(kept)


def backward(
  x_ND,
  matrices,
  weights_NK,
  plan,
  kept,
  dy_ND,
  *,
  activation,
  steps: RowSteps | None = None,
):
  """-> dx_ND, gradients of the matrices, dweights_NK."""
  rows, dtype = plan.pair_R.size, x_ND.dtype
  weight_R = take(weights_NK.reshape(-1), plan.pair_R)
  wide = jnp.promote_types(dtype, jnp.float32)

  def body(tile, carry):
    dx_ND, (dw_gate, dw_up, dw_down), dweight_R = carry
    token = tile.read_all(plan.token_R)
    x, dy = (tile.mask(take(a, token)) for a in (x_ND, dy_ND))
    weight = tile.read(weight_R)[:, None]
    pre = [None if a is None else tile.read(a) for a in kept]
    h, pull = jax.vjp(lambda *pre: hidden(activation, *pre), *pre)
    dh = dot(dy, matrix(matrices[2], tile), (1, 1)).astype(h.dtype)
    dpre = pull((dh * weight).astype(h.dtype))
    dpre = jnp.concatenate([d for d in dpre if d is not None], axis=1)
    dx = dot(dpre, _first(matrices, tile), (1, 1))
    dfirst = _halves(dot(x, dpre, (0, 0)), matrices)
    dw_gate = add_matrix(dw_gate, tile, dfirst[0])
    if dw_up is not None:
      dw_up = add_matrix(dw_up, tile, dfirst[1])
    weighted = (h * weight).astype(dtype)
    dw_down = add_matrix(dw_down, tile, dot(weighted, dy, (0, 0)))
    dweight_R = tile.write(dweight_R, (dh * h).sum(-1))
    dx_ND = _add_rows(dx_ND, token, tile.mask(dx))
    return dx_ND, (dw_gate, dw_up, dw_down), dweight_R

  start = (
    jnp.zeros(x_ND.shape, wide),
    jax.tree.map(lambda w: jnp.zeros(w.shape, wide), matrices),
    jnp.zeros((rows,), weights_NK.dtype),
  )
  steps = steps or _steps('backward', rows, matrices, dtype)
  cut = tiles.cut(plan.sizes_E, rows, steps)
  dx_ND, dmatrices, dweight_R = tiles.for_each(cut, rows, body, start)
  dmatrices = jax.tree.map(lambda w: w.astype(dtype), dmatrices)
  dweights_NK = take(dweight_R, plan.place_NK)
  return dx_ND.astype(dtype), dmatrices, dweights_NK


def _steps(form, rows, matrices, dtype):
  key = store.Key(store.host(), rows, *matrices[0].shape, dtype.name)
  return RowSteps.of(OP, form, key)


def _first(matrices, tile):
  """[D, F or 2F]: gate and up side by side, as one product is faster."""
  w = [matrix(w, tile) for w in matrices[:2] if w is not None]
  return jnp.concatenate(w, axis=1)


def _halves(a, matrices):
  """Undoes `_first`: the columns of gate, and those of up or None."""
  if matrices[1] is None:
    return a, None
  return jnp.split(a, 2, axis=1)


def _add_rows(a, index, value):
  return a.at[index].add(value, mode='promise_in_bounds')
