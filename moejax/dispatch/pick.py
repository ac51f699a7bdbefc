"""Rows of tokens by index, and sums of a token's rows: each other's gradient.

Both read by index; nothing is scattered.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.custom_vjp
def pick(x_ND: jax.Array, token_R: jax.Array, place_NK: jax.Array) -> jax.Array:
  """[R, D]: the token of each row; zeros for an index of N.

  Args:
    x_ND: [N, D] tokens.
    token_R: int32, N for a row of no token.
    place_NK: int32, the rows of each token, R for none: the inverse.
  """
  del place_NK
  return x_ND.at[token_R].get(mode='fill', fill_value=0)


@jax.custom_vjp
def put(y_RD: jax.Array, token_R: jax.Array, place_NK: jax.Array) -> jax.Array:
  """[N, D]: the sum of each token's rows, in f32 or wider; see `pick`."""
  del token_R
  wide = jnp.promote_types(y_RD.dtype, jnp.float32)
  y_ND = jnp.zeros((place_NK.shape[0], y_RD.shape[1]), wide)
  for k in range(place_NK.shape[1]):  # all K at once would be K times as large
    row_ND = y_RD.at[place_NK[:, k]].get(mode='fill', fill_value=0)
    y_ND += row_ND.astype(wide)
  return y_ND


def _pick_forward(x_ND, token_R, place_NK):
  return pick(x_ND, token_R, place_NK), (token_R, place_NK)


def _pick_backward(saved, dx_RD):
  return put(dx_RD, *saved).astype(dx_RD.dtype), None, None


def _put_forward(y_RD, token_R, place_NK):
  # An empty array tells the dtype.
  like = jnp.zeros((0,), y_RD.dtype)
  return put(y_RD, token_R, place_NK), (token_R, place_NK, like)


def _put_backward(saved, dy_ND):
  token_R, place_NK, like = saved
  return pick(dy_ND.astype(like.dtype), token_R, place_NK), None, None


pick.defvjp(_pick_forward, _pick_backward)
put.defvjp(_put_forward, _put_backward)
