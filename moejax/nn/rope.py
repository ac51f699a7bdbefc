"""Rotary position embedding."""

import jax
import jax.numpy as jnp


def rotate(
  x_BTHD: jax.Array, positions_BT: jax.Array, theta: float | None
) -> jax.Array:
  """Rotates pairs (i, i + D/2) of each head by position * theta^(-2i/D).

  Source: 2104.09864 eq. 34.
  Differs: pairs are the two halves of the head, not neighbours; the same up
  to a permutation of channels.

  Args:
    x_BTHD: [B, T, H, D] with D even.
    positions_BT: int32.
    theta: the base of the wavelengths; None leaves x as it is.
  """
  if theta is None:
    return x_BTHD
  half = x_BTHD.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_BT[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  first, second = jnp.split(x_BTHD.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return turned.astype(x_BTHD.dtype)
