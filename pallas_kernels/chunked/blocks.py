"""Matrices and rows of chunks, taken apart into blocks and put together."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def product(equation, *arrays):
  """A product in full precision, also where the platform would round."""
  return jnp.einsum(equation, *arrays, precision=jax.lax.Precision.HIGHEST)


def product_over_rows(x_nij, y_nik):
  """[n, j, k]: each x transposed, times y, where the matrices x are small.

  They are written out transposed first, which XLA:CPU multiplies two to eight
  times as fast. With as many numbers as y it would not be worth it.
  """
  x_nji = jax.lax.optimization_barrier(jnp.swapaxes(x_nij, 1, 2))
  return product('nji,nik->njk', x_nji, y_nik)


def halves(x_nCD, b):
  """The earlier and the later halves [n', b, D] of blocks of 2b rows."""
  pairs = x_nCD.reshape(-1, 2, b, x_nCD.shape[-1])
  return pairs[:, 0], pairs[:, 1]


def join(earlier, later, shape):
  """Undoes `halves`."""
  return jnp.stack([earlier, later], axis=1).reshape(shape)


def merge(diagonal, lower):
  """Blocks [2n', b, b] and what is below [n', b, b] -> [n', 2b, 2b]."""
  b = lower.shape[-1]
  pairs = diagonal.reshape(-1, 2, b, b)
  above = jnp.pad(pairs[:, 0], ((0, 0), (0, 0), (0, b)))
  below = jnp.concatenate([lower, pairs[:, 1]], axis=2)
  return jnp.concatenate([above, below], axis=1)


def lower_blocks(x_nrCC):
  """{b: [n', r b, b]}: blocks below the diagonal, r matrices on each other.

  Those of b take rows of the later half and columns of the earlier half of
  blocks of 2b.
  """
  n, r, C, _ = x_nrCC.shape
  found, b = {}, C // 2
  while b:
    found[b] = x_nrCC[:, :, b:, :b].reshape(-1, r * b, b)
    first, second = x_nrCC[:, :, :b, :b], x_nrCC[:, :, b:, b:]
    x_nrCC = jnp.stack([first, second], axis=1).reshape(-1, r, b, b)
    b //= 2
  return found
