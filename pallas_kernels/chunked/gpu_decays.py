"""Decays inside of the chunked GPU kernels.

A decay between two tokens is e to the sum of the log decays between them. That
sum is taken over just those tokens, by a product with a matrix of 0 and 1: no
difference of sums, and no exponent above 0, so that log decays of -1e30 forget
exactly and others lose nothing beside them.
"""

from __future__ import annotations

import jax.numpy as jnp

from pallas_kernels.chunked.gpu_parts import Chunk, dot, ones, square
from pallas_kernels.chunked.gpu_sizes import Sizes


def to_seam(log_CK, level, parts: int):
  """f32 [C, K]: the decays to where the token's block meets its other.

  In the second of two blocks from the seam to the token and with it, in the
  first from after the token to the seam.
  """
  row, token = square()
  second = ((row >> level) & 1) == 1
  same = (row >> level) == (token >> level)
  within = same & jnp.where(second, token <= row, token > row)
  return jnp.exp(dot(ones(within), log_CK, (1, 0), parts))


def from_start(log_CK, parts: int):
  """f32 [C, K]: the decays of the state before the chunk, up to each token."""
  row, token = square()
  return jnp.exp(dot(ones(token <= row), log_CK, (1, 0), parts))


def to_end(log_CK, parts: int):
  """f32 [C, K]: the decays of each token up to the end of the chunk."""
  row, token = square()
  return jnp.exp(dot(ones(token > row), log_CK, (1, 0), parts))


def between(log_C, parts: int):
  """f32 [C, C]: the decays from each column's token to each row's, if later."""
  row, column = square()
  if log_C is None:
    return jnp.where(row >= column, 1.0, 0.0)
  # Here a row is a token that decays; a column forgets it from then on.
  after = jnp.where(row > column, log_C[:, None], 0.0)
  total = dot(ones(column <= row), after, (1, 0), parts)
  return jnp.where(row >= column, jnp.exp(total), 0.0)


class HeadDecays:
  """One decay for each head: factors of whole rows.

  Attributes:
    start, end: f32 [C, 1] or 1: see `from_start`, `to_end`.
    whole: of the whole chunk.
  """

  def __init__(self, sizes: Sizes, chunk: Chunk, ref):
    self.start = self.end = self.whole = 1.0
    if sizes.decay == 'head':
      row, token = square()
      log = chunk.load_column(ref)
      up_to = jnp.where(token <= row, log[None, :], 0.0)
      after = jnp.where(token > row, log[None, :], 0.0)
      self.start = jnp.exp(up_to.sum(1))[:, None]
      self.end = jnp.exp(after.sum(1))[:, None]
      self.whole = jnp.exp(log.sum())
