"""Arrays cut along time, so that only a chunk has logits at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.sharding import TOKENS, WHOLE


def by_device(
  f: Callable,
  tokens: Sequence[jax.Array],
  head_DV: jax.Array,
  chunk_tokens: int,
) -> Any:
  """`f(*tokens, head_DV, chunk_tokens)`, of the tokens of each device.

  So a chunk is of one device's tokens, and the gradients of the head are added
  up once, after the last chunk. Where the mesh cuts the vocabulary and not time
  the compiler spreads the work instead: the head stays where it is, and chunks
  are as many times longer as there are shards of rows.

  Args:
    f: its result is cut like the tokens, [B, T, ...].
    tokens: arrays [B, T, ...].
    head_DV: the head.
    chunk_tokens: of a device.
  """

  def own(_axis, tokens, head_DV):
    return f(*tokens, head_DV, chunk_tokens)

  over_vocab = sharding.size_of(sharding.axes_of('vocab')) > 1
  if over_vocab and not sharding.cuts('time'):
    rows = sharding.size_of(sharding.axes_of('batch'))
    return f(*tokens, head_DV, rows * chunk_tokens)
  args, axes = (tuple(tokens), head_DV), (TOKENS, WHOLE)
  return sharding.by_device(own, args, axes, TOKENS)


def chunks(x: jax.Array, size: int) -> jax.Array:
  """[B, T, ...] to [chunks, B, size, ...], padded with zeros."""
  batch, length = x.shape[:2]
  pad = [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2)
  x = jnp.pad(x, pad).reshape(batch, -1, size, *x.shape[2:])
  return x.swapaxes(0, 1)
