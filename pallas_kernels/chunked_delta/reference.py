"""The definition of the delta rule with decay, token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.chunked.inputs import wide_dtype
from pallas_kernels.chunked.tokens import first, per_token


def chunked_delta(
  q_BTHK, k_BTHK, v_BTGV, log_decay, beta_BTG, state_BGKV, *, scale
):
  """y_t = scale q_t S_t after S~ = decay S, S_t = S~ + beta k^T (v - k S~)."""
  wide = wide_dtype(v_BTGV.dtype)

  def step(S_BGKV, x):
    q_BGK, k_BGK, v_BGV, decay_BGK, beta_BG = x
    S_BGKV = decay_BGK[..., None] * S_BGKV
    error_BGV = v_BGV - first(k_BGK, S_BGKV)
    write_BGK = beta_BG[..., None] * k_BGK
    S_BGKV += write_BGK[..., None] * error_BGV[..., None, :]
    return S_BGKV, scale * first(q_BGK, S_BGKV)

  xs = per_token(q_BTHK, k_BTHK, v_BTGV, log_decay, wide)
  S_BGKV, y_TBGV = jax.lax.scan(
    step, state_BGKV, (*xs, jnp.moveaxis(beta_BTG, 1, 0))
  )
  return jnp.moveaxis(y_TBGV, 0, 1).astype(v_BTGV.dtype), S_BGKV
