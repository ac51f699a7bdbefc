"""The experts' feed-forward over sorted rows, on any platform.

The backward pass recomputes the hidden values from the pre-activations and
never forms the experts' outputs again: with a = hidden, the gradient of a
combine weight is <dy W_down^T, a>, which equals <dy, a W_down>.

What exists at the same time is counted in `memory.py`.

Source: arXiv 2512.14080 section 4 (what is kept and what is recomputed).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.grouped_matmul.api import product


def hidden(activation, gate, up):
  """f32 or wider: activation(gate) * up."""
  wide = jnp.promote_types(gate.dtype, jnp.float32)
  h = activation(gate.astype(wide))
  return h if up is None else h * up.astype(wide)


def pair(arrays):
  """(gate, up); up is `None` if there is one array."""
  return (*arrays, None)[:2]


def forward(x_ND, matrices, weights_NK, plan, *, activation, keep):
  """-> y_ND, (gate_RF, up_RF); these are `None` unless `keep`."""
  w_gate, w_up, w_down = matrices
  x_RD = take(x_ND, plan.token_R)
  gate_RF = product('nn', x_RD, w_gate, plan.sizes_E)
  up_RF = None
  if w_up is not None:
    up_RF = product('nn', x_RD, w_up, plan.sizes_E)
  h_RF = hidden(activation, gate_RF, up_RF).astype(x_ND.dtype)
  y_ND = down(h_RF, w_down, weights_NK, plan)
  return y_ND, (gate_RF, up_RF) if keep else (None, None)


def down(h_RF, w_EFD, weights_NK, plan):
  """[N, D]: the weighted sum of what `down` makes of each token's rows."""
  y_RD = product('nn', h_RF, w_EFD.astype(h_RF.dtype), plan.sizes_E)
  return combine(y_RD, weights_NK, plan.place_NK)


def backward(x_ND, matrices, weights_NK, plan, kept, dy_ND, *, activation):
  """-> dx_ND, gradients of the matrices, dweights_NK."""
  dy_RD = take(dy_ND, plan.token_R)
  weight_R1 = take(weights_NK.reshape(-1), plan.pair_R)[:, None]
  h_RF, pull = jax.vjp(lambda *pre: hidden(activation, *pre), *kept)
  dh_RF = product('nt', dy_RD, matrices[2], plan.sizes_E).astype(h_RF.dtype)
  dweight_R = (dh_RF * h_RF).sum(-1)
  dpre = pull(dh_RF * weight_R1)
  weighted_RF = (h_RF * weight_R1).astype(x_ND.dtype)
  dx_ND, dmatrices = products_backward(
    x_ND, matrices, plan, dy_RD, weighted_RF, dpre
  )
  dweights_NK = take(dweight_R, plan.place_NK).astype(weights_NK.dtype)
  return dx_ND, dmatrices, dweights_NK


def products_backward(x_ND, matrices, plan, dy_RD, weighted_RF, dpre):
  """-> dx_ND, gradients of the matrices in the dtype of the rows.

  Args:
    x_ND: tokens.
    matrices: gate, up or `None`, down.
    plan: of pairs.
    dy_RD: gradients of the experts' outputs before they are weighted.
    weighted_RF: hidden rows times their weights.
    dpre: gradients of gate_RF and up_RF (or `None`).
  """
  sizes_E, (dgate_RF, dup_RF) = plan.sizes_E, dpre
  w_gate, w_up, _ = matrices
  dw_down = product('tn', weighted_RF, dy_RD, sizes_E)
  x_RD = take(x_ND, plan.token_R)
  dw_gate = product('tn', x_RD, dgate_RF, sizes_E)
  dw_up = None if w_up is None else product('tn', x_RD, dup_RF, sizes_E)
  dx_ND = _dx(dgate_RF, w_gate, plan)
  if w_up is not None:
    # One after the other: two arrays of rows would be the peak of memory.
    dup_RF, dx_ND = lax.optimization_barrier((dup_RF, dx_ND))
    dx_ND += _dx(dup_RF, w_up, plan)
  return dx_ND, (dw_gate, dw_up, dw_down)


def _dx(dpre_RF, w_EDF, plan):
  """[N, D]: what one of the first matrices adds to the gradient of x."""
  w_EDF = w_EDF.astype(dpre_RF.dtype)
  dx_RD = product('nt', dpre_RF, w_EDF, plan.sizes_E)
  ones_NK = jnp.ones(plan.place_NK.shape, jnp.float32)
  return combine(dx_RD, ones_NK, plan.place_NK)


def combine(y_RD, weights_NK, place_NK):
  """[N, D]: the weighted sum of each token's K rows.

  In chunks of N / K tokens, so that what is gathered is as large as the result
  and not K times that.
  """
  n, k = place_NK.shape
  wide = jnp.promote_types(weights_NK.dtype, y_RD.dtype)

  def some(place_nK, weights_nK):
    y_nKD = take(y_RD, place_nK).astype(wide)
    y_nD = jnp.einsum('nkd,nk->nd', y_nKD, weights_nK.astype(wide))
    return y_nD.astype(y_RD.dtype)

  if k == 1:
    return some(place_NK, weights_NK)
  size = -(-n // k)

  def step(i, y_ND):
    # The last chunk is moved back to end at N: some tokens come twice.
    start = jnp.minimum(i * size, n - size)
    part = [
      lax.dynamic_slice_in_dim(a, start, size) for a in (place_NK, weights_NK)
    ]
    return lax.dynamic_update_slice_in_dim(y_ND, some(*part), start, 0)

  y_ND = jnp.zeros((n, y_RD.shape[1]), y_RD.dtype)
  return lax.fori_loop(0, -(-n // size), step, y_ND)


def take(a, index):
  return a.at[index].get(mode='promise_in_bounds')
