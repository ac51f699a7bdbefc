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


def forward(x_ND, matrices, weights_NK, plan, *, activation, keep):
  """-> y_ND, (gate_RF, up_RF); these are `None` unless `keep`."""
  w_gate, w_up, w_down = matrices
  x_RD = _take(x_ND, plan.token_R)
  gate_RF = product('nn', x_RD, w_gate, plan.sizes_E)
  up_RF = None
  if w_up is not None:
    up_RF = product('nn', x_RD, w_up, plan.sizes_E)
  h_RF = hidden(activation, gate_RF, up_RF).astype(x_ND.dtype)
  y_RD = product('nn', h_RF, w_down, plan.sizes_E)
  y_ND = combine(y_RD, weights_NK, plan.place_NK)
  return y_ND, (gate_RF, up_RF) if keep else (None, None)


def backward(x_ND, matrices, weights_NK, plan, kept, dy_ND, *, activation):
  """-> dx_ND, gradients of the matrices, dweights_NK."""
  dtype, sizes_E = x_ND.dtype, plan.sizes_E
  w_gate, w_up, w_down = matrices
  dy_RD = _take(dy_ND, plan.token_R)
  weight_R1 = _take(weights_NK.reshape(-1), plan.pair_R)[:, None]
  h_RF, pull = jax.vjp(lambda *pre: hidden(activation, *pre), *kept)
  dh_RF = product('nt', dy_RD, w_down, sizes_E).astype(h_RF.dtype)
  dweight_R = (dh_RF * h_RF).sum(-1)
  dgate_RF, dup_RF = pull(dh_RF * weight_R1)
  dw_down = product('tn', (h_RF * weight_R1).astype(dtype), dy_RD, sizes_E)
  x_RD = _take(x_ND, plan.token_R)
  dw_gate = product('tn', x_RD, dgate_RF, sizes_E)
  dw_up = None if w_up is None else product('tn', x_RD, dup_RF, sizes_E)
  dx_ND = _dx(product('nt', dgate_RF, w_gate, sizes_E), plan)
  if w_up is not None:
    # One after the other: two arrays of rows would be the peak of memory.
    dup_RF, dx_ND = lax.optimization_barrier((dup_RF, dx_ND))
    dx_ND += _dx(product('nt', dup_RF, w_up, sizes_E), plan)
  dweights_NK = _take(dweight_R, plan.place_NK).astype(weights_NK.dtype)
  return dx_ND, (dw_gate, dw_up, dw_down), dweights_NK


def _dx(dx_RD, plan):
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
    y_nKD = _take(y_RD, place_nK).astype(wide)
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


def _take(a, index):
  return a.at[index].get(mode='promise_in_bounds')
