"""Products inside the TPU kernels of chunked recurrences.

The matrix unit multiplies bf16 and adds in f32. f32 operands are cut into bf16
parts: by the compiler at the highest precision where inputs are f32, else here
into two, of which the product of the small parts is left out (three passes,
relative error 2^-16). An operand that is bf16 already is one part.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

NN, NT, TN = (1, 0), (1, 1), (0, 0)  # the axes that are contracted


def parts(x: jax.Array, count: int) -> list[jax.Array]:
  """bf16 arrays, largest first, whose sum is `x` to `8 count` bits.

  Exact for three parts of normal f32, and finite for all finite `x` below the
  largest bf16.
  """
  if x.dtype == jnp.bfloat16:
    return [x]
  found = []
  for _ in range(count):
    found.append(x.astype(jnp.bfloat16))
    x = x - found[-1].astype(jnp.float32)
  return found


@dataclasses.dataclass(frozen=True)
class Products:
  """How kernels multiply: `full` for f32 inputs."""

  full: bool

  def nn(self, a, b):
    """a b."""
    return self._product(a, b, NN)

  def nt(self, a, b):
    """a b^T."""
    return self._product(a, b, NT)

  def tn(self, a, b):
    """a^T b."""
    return self._product(a, b, TN)

  def sums(self, ones: jax.Array, x: jax.Array) -> jax.Array:
    """`ones`, a 0/1 matrix, times f32 `x`: sums of what it picks.

    What it does not pick adds an exact 0, so that no result depends on it.
    """
    ones = ones.astype(jnp.bfloat16)
    return _sum([_dot(ones, p, NN) for p in parts(x, 3 if self.full else 2)])

  def _product(self, a, b, form):
    if self.full:
      return _dot(a, b, form, lax.Precision.HIGHEST)
    a, b = parts(a, 2), parts(b, 2)
    return _sum(
      [
        _dot(x, y, form)
        for i, x in enumerate(a)
        for j, y in enumerate(b)
        if i + j < 2
      ]
    )


def _sum(terms):
  # Smallest first: what is large is rounded once.
  return functools.reduce(jnp.add, reversed(terms))


def _dot(a, b, form, precision=lax.Precision.DEFAULT):
  return lax.dot_general(
    a,
    b,
    (((form[0],), (form[1],)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
