"""Scores of the two sides of a grid of slots."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.nn import Projection, rms_norm


class Halves(nn.Module):
  """Normalised queries times normalised keys, for each side, head and rank.

  Source: 2411.12364 sec. 3.1 and 3.2; 2508.18756 sec. 2 (a query per rank).

  Attributes:
    heads: H; each has queries and keys of its own.
    keys: S of a side.
    head_dim: numbers of a query of one side, over all ranks.
    ranks: R.
    gain: initial scale of the norms of queries and of keys. A score starts with
      standard deviation gain^2 * sqrt(head_dim / ranks).

  Raises:
    ValueError: if the ranks do not divide `head_dim`.
  """

  heads: int
  keys: int
  head_dim: int
  ranks: int
  gain: float

  @nn.compact
  def __call__(self, x_ND: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-> left and right, f32 [N, H, S, R]."""
    size = rank_dim(self.head_dim, self.ranks)
    features = (2, self.heads, self.ranks, size)
    q = Projection(
      features, ('embed', None, 'heads', None, 'kv'), name='query'
    )(x_ND)
    axes = (None, 'heads', None, None, 'kv')
    init = nn.with_logical_partitioning(
      nn.initializers.normal(size**-0.5), axes
    )
    shape = (2, self.heads, self.keys, self.ranks, size)
    keys = self.param('keys', init, shape, jnp.float32)
    q = self._norm('query_scale', q.astype(jnp.float32))
    keys = self._norm('key_scale', keys)
    scores = jnp.einsum('nahrd,ahsrd->anhsr', q, keys)
    return scores[0], scores[1]

  def _norm(self, name, x):
    init = nn.with_logical_partitioning(
      nn.initializers.constant(self.gain), ('kv',)
    )
    scale = self.param(name, init, x.shape[-1:], jnp.float32)
    return rms_norm(x, scale, 1e-6)


def rank_dim(head_dim: int, ranks: int) -> int:
  if head_dim % ranks:
    raise ValueError(
      f'head_dim={head_dim} of a query is not divisible by ranks={ranks}; '
      f'use {head_dim // ranks * ranks or ranks} or another multiple.'
    )
  return head_dim // ranks


def halves_flops(width, heads, keys, head_dim) -> float:
  """Forward FLOPs per token."""
  return 2 * heads * (2 * width * head_dim + 2 * keys * head_dim)
