"""Decays within chunks, as products of factors of at most 1.

No difference of sums of log decays is ever exponentiated: the decay over a
block of 2b tokens is the product of those over its halves. So nothing
overflows, and a factor of 0 forgets exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pallas_kernels.chunked.blocks import halves, join, merge, product


class Level(NamedTuple):
  """Decays within blocks of b tokens.

  Attributes:
    b: tokens of a block.
    prefix: [n, C, D], from before the block to after the token.
    suffix: [n, C, D], from after the token to the end of the block.
  """

  b: int
  prefix: jnp.ndarray
  suffix: jnp.ndarray


def levels(log_decay_nCD) -> list[Level]:
  """For b = 1, 2, 4, .., C; the last is the whole chunk."""
  prefix = jnp.exp(log_decay_nCD)
  found = [Level(1, prefix, jnp.ones_like(prefix))]
  while found[-1].b < prefix.shape[1]:
    found.append(_double(*found[-1]))
  return found


def _double(b, prefix, suffix):
  p0, p1 = halves(prefix, b)
  s0, s1 = halves(suffix, b)
  return Level(
    2 * b,
    join(p0, p1 * p0[:, -1:], prefix.shape),
    join(s0 * p1[:, -1:], s1, suffix.shape),
  )


def between(found: list[Level]):
  """[n, C, C]: of one channel from token j to token i >= j, else 0."""
  n, C, _ = found[0].prefix.shape
  decay = jnp.ones((n * C, 1, 1), found[0].prefix.dtype)
  for b, prefix, suffix in found[:-1]:
    rows, columns = halves(prefix, b)[1], halves(suffix, b)[0]
    decay = merge(decay, rows * columns.reshape(-1, 1, b))
  return decay


def gradient(found: list[Level], inwards_nCD, outwards_nCD, through_nD):
  """[n, C, D]: of the log decays, from what is sensitive to them.

  A sum over the tokens before is made as such. Were it a total minus a sum
  over the tokens after, it would lose its digits where the decay is strong. No
  sum goes beyond a token that forgets all: what lies there would cancel but for
  its rounding, and documents would touch each other.

  Args:
    found: of `levels`.
    inwards_nCD: of the decays up to a token, felt by that token and all before.
    outwards_nCD: of those from a token to the end, felt by all after it.
    through_nD: of the decay of the whole chunk, felt by all.
  """
  C = inwards_nCD.shape[1]
  after = np.triu(np.ones((C, C), bool))
  document = jnp.cumsum((found[0].prefix == 0).all(-1), axis=1)
  own = after & (document[:, :, None] == document[:, None])
  before = jnp.broadcast_to(~after, own.shape)
  sums = jnp.concatenate([own, before], axis=2).astype(inwards_nCD.dtype)
  terms = jnp.concatenate([inwards_nCD, outwards_nCD], axis=1)
  return product('nij,njd->nid', sums, terms) + through_nD[:, None]
