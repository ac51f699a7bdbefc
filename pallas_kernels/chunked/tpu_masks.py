"""Masks [C, C] over the tokens of a chunk, and turning rows into columns.

A chunk is halved, its halves are halved, and so on: at the level of blocks of
b tokens, b a power of two, pairs (i, j) meet where j lies in the first half of
a block of 2b and i in its second half. Each pair i > j meets at one level.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def levels(chunk: int) -> list[int]:
  """The b of all levels, in rising order."""
  return [1 << i for i in range(chunk.bit_length() - 1)]


def row_column(chunk: int) -> tuple[jax.Array, jax.Array]:
  """The index of the row and of the column of each element."""
  shape = (chunk, chunk)
  return (
    lax.broadcasted_iota(jnp.int32, shape, 0),
    lax.broadcasted_iota(jnp.int32, shape, 1),
  )


def is_second(chunk: int, b: int) -> jax.Array:
  """[C, 1]: whether a token lies in the second half of its block of 2b."""
  return (lax.broadcasted_iota(jnp.int32, (chunk, 1), 0) & b) != 0


def meets(chunk: int, b: int) -> jax.Array:
  """Whether row i and column j meet at this level."""
  i, j = row_column(chunk)
  apart = i ^ j
  return (apart >= b) & (apart < 2 * b) & (i > j)


def to_seam(chunk: int, b: int, transposed: bool = False) -> jax.Array:
  """The steps (columns) between a token (row) and the seam of its block of 2b.

  A token after the seam has decayed what comes from before it by its own step
  too; one before the seam is decayed by the steps after its own.
  """
  i, t = row_column(chunk)
  if transposed:
    i, t = t, i
  second = (i & b) != 0
  return ((i ^ t) < b) & ((second & (t <= i)) | (~second & (t > i)))


def column(row_1C: jax.Array) -> jax.Array:
  """[C, 1] from [1, C]: exact, as each sum has one term."""
  i, j = row_column(row_1C.shape[1])
  return jnp.where(i == j, row_1C, 0).sum(1, keepdims=True)


def row(column_C1: jax.Array) -> jax.Array:
  """[1, C] from [C, 1]."""
  i, j = row_column(column_C1.shape[0])
  return jnp.where(i == j, column_C1, 0).sum(0, keepdims=True)
