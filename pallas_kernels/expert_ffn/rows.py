"""The experts' feed-forward over sorted rows, on any platform.

The backward pass recomputes the hidden values from the pre-activations and
never forms the experts' outputs again: with a = hidden, the gradient of a
combine weight is <dy W_down^T, a>, which equals <dy, a W_down>.

Source: arXiv 2512.14080 section 4 (what is kept and what is recomputed).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul.api import product


def hidden(activation, gate, up):
  """f32 or wider: activation(gate) * up."""
  wide = jnp.promote_types(gate.dtype, jnp.float32)
  h = activation(gate.astype(wide))
  return h if up is None else h * up.astype(wide)


def forward(x_ND, matrices, weights_NK, plan, *, activation, keep):
  """-> y_ND, (gate_RF, up_RF); these are `None` unless `keep`."""
  w_gate, w_up, w_down = matrices
  x_RD = x_ND[plan.token_R]
  gate_RF = product('nn', x_RD, w_gate, plan.sizes_E)
  up_RF = None
  if w_up is not None:
    up_RF = product('nn', x_RD, w_up, plan.sizes_E)
  h_RF = hidden(activation, gate_RF, up_RF).astype(x_ND.dtype)
  y_RD = product('nn', h_RF, w_down, plan.sizes_E)
  y_ND = _combine(y_RD, weights_NK, plan).astype(x_ND.dtype)
  return y_ND, (gate_RF, up_RF) if keep else (None, None)


def backward(x_ND, matrices, weights_NK, plan, kept, dy_ND, *, activation):
  """-> dx_ND, gradients of the matrices, dweights_NK."""
  w_gate, w_up, w_down = matrices
  dtype, sizes_E = x_ND.dtype, plan.sizes_E
  x_RD, dy_RD = x_ND[plan.token_R], dy_ND[plan.token_R]
  weight_R1 = weights_NK.reshape(-1)[plan.pair_R][:, None]
  h_RF, pull = jax.vjp(lambda *pre: hidden(activation, *pre), *kept)
  dh_RF = product('nt', dy_RD, w_down, sizes_E).astype(h_RF.dtype)
  dweight_R = (dh_RF * h_RF).sum(-1)
  dgate_RF, dup_RF = pull(dh_RF * weight_R1)
  dw_down = product('tn', (h_RF * weight_R1).astype(dtype), dy_RD, sizes_E)
  dw_gate = product('tn', x_RD, dgate_RF, sizes_E)
  dx_RD = product('nt', dgate_RF, w_gate, sizes_E)
  dw_up = None
  if w_up is not None:
    dw_up = product('tn', x_RD, dup_RF, sizes_E)
    dx_RD += product('nt', dup_RF, w_up, sizes_E)
  dx_ND = _combine(dx_RD, jnp.ones_like(weights_NK), plan).astype(dtype)
  dweights_NK = dweight_R[plan.place_NK].astype(weights_NK.dtype)
  return dx_ND, (dw_gate, dw_up, dw_down), dweights_NK


def _combine(y_RD, weights_NK, plan):
  """[N, D]: the weighted sum of each token's K rows."""
  y_NKD = y_RD[plan.place_NK]
  wide = jnp.promote_types(weights_NK.dtype, y_RD.dtype)
  return jnp.einsum('nkd,nk->nd', y_NKD.astype(wide), weights_NK.astype(wide))
