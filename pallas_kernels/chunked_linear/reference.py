"""The definition of linear attention with decay, token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.chunked.inputs import wide_dtype
from pallas_kernels.chunked.tokens import first, per_token


def chunked_linear(q_BTHK, k_BTHK, v_BTGV, log_decay, state_BGKV, *, scale):
  """y_t = scale q_t S_t after S_t = decay S + k^T v."""
  wide = wide_dtype(v_BTGV.dtype)

  def step(S_BGKV, x):
    q_BGK, k_BGK, v_BGV, decay_BGK = x
    S_BGKV = decay_BGK[..., None] * S_BGKV
    S_BGKV += k_BGK[..., None] * v_BGV[..., None, :]
    return S_BGKV, scale * first(q_BGK, S_BGKV)

  xs = per_token(q_BTHK, k_BTHK, v_BTGV, log_decay, wide)
  S_BGKV, y_TBGV = jax.lax.scan(step, state_BGKV, xs)
  return jnp.moveaxis(y_TBGV, 0, 1).astype(v_BTGV.dtype), S_BGKV
