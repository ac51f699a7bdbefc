"""Pieces of the recurrences that go token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def per_token(q_BTHK, k_BTHK, v_BTGV, log_decay, wide):
  """q, k, v and decay with the tokens first, in `wide`, for each value head.

  The decay is [T, B, G, K], or [T, B, G, 1] if all channels share it.
  """
  shared = v_BTGV.shape[2] // q_BTHK.shape[2]
  q_BTGK, k_BTGK = (jnp.repeat(x, shared, axis=2) for x in (q_BTHK, k_BTHK))
  if log_decay is None:
    log_decay = jnp.zeros(v_BTGV.shape[:3], wide)
  if log_decay.ndim == 3:
    log_decay = log_decay[..., None]
  xs = q_BTGK, k_BTGK, v_BTGV, jnp.exp(log_decay)
  return tuple(jnp.moveaxis(x.astype(wide), 1, 0) for x in xs)


def first(x_BGK, S_BGKV):
  """[B, G, V]: rows times states, summed over the first axis of the state."""
  return jnp.einsum(
    'bgk,bgkv->bgv', x_BGK, S_BGKV, precision=jax.lax.Precision.HIGHEST
  )
