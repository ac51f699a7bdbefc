"""The definition of the experts' feed-forward."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def expert_ffn(x_ND, w_gate, w_up, w_down, ids_NK, weights_NK, *, activation):
  """[N, D]: every expert on every token, times the token's weight for it."""

  def add(y_ND, matrices_and_expert):
    (gate, up, down), e = matrices_and_expert
    weight_N = jnp.where(ids_NK == e, weights_NK, 0).sum(-1)
    own = (ids_NK == e).any(-1)[:, None]
    x = jnp.where(own, x_ND, 0)
    h = activation(x @ gate) * (1 if up is None else x @ up)
    return y_ND + jnp.where(own, weight_N[:, None] * (h @ down), 0), None

  experts = (w_gate, w_up, w_down), jnp.arange(w_gate.shape[0])
  wide = jnp.promote_types(weights_NK.dtype, x_ND.dtype)
  y_ND, _ = jax.lax.scan(add, jnp.zeros(x_ND.shape, wide), experts)
  return y_ND.astype(x_ND.dtype)
