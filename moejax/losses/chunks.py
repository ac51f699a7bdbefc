"""Arrays cut along time, so that only a chunk has logits at a time."""

import jax
import jax.numpy as jnp


def chunks(x: jax.Array, size: int) -> jax.Array:
  """[B, T, ...] to [chunks, B, size, ...], padded with zeros."""
  batch, length = x.shape[:2]
  pad = [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2)
  x = jnp.pad(x, pad).reshape(batch, -1, size, *x.shape[2:])
  return x.swapaxes(0, 1)
