"""Experts get whole tiles of tokens."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.routers import affinities
from moejax.types import Chosen, Context, Pairs
from pallas_kernels.route.api import CHOICE


class TokenRounding(nn.Module):
  """In training, makes the tokens of every expert a multiple of a tile.

  A grouped product pads each group to whole tiles; with many small groups that
  is much of its work. An expert that is rounded down loses its pairs of least
  weight. One that is rounded up gains the tokens, of those that did not choose
  it, that have the largest affinity to it, with this affinity as their weight.
  Outside training it is `inner`: rounding sees later tokens.

  Source: 2512.14080 (token rounding); the weights are those of the authors'
  public code.
  Differs: counts go to the multiple below or above by largest remainder, not
  each to its nearest, so that the total is static: all N * K pairs, where
  `tile_rows` divides their number. Otherwise, and where tokens are padding,
  the total is the multiple nearest to the pairs of real tokens, of at most
  N * K; rows that are left over have no expert and cost no work. An expert
  that wants more tokens than a further tile leaves is rounded down, and in its
  place none is rounded up. With fewer real tokens than `tile_rows` nothing is
  rounded.

  Sows `stats/rounded_frac`: pairs dropped and added, for each pair chosen.

  Attributes:
    inner: a router that makes `Chosen`.
    tile_rows: rows of a tile of the grouped product.
    affinity: `logits_NE -> affinity_NE` for tokens that did not choose.
  """

  inner: nn.Module
  tile_rows: int = 128
  affinity: Callable = affinities.softmax

  @property
  def causal(self) -> bool:
    """Whether the router of decoding is."""
    return self.inner.causal

  @property
  def k(self) -> int:
    """Experts per token, on average."""
    return self.inner.k

  @nn.compact
  def __call__(self, x_ND: jax.Array, ctx: Context) -> Chosen | Pairs:
    if self.tile_rows < 1:
      raise ValueError(
        f'tile_rows={self.tile_rows} must be at least 1, such as 128.'
      )
    chosen = self.inner(x_ND, ctx)
    if not ctx.train:
      return chosen
    if self.tile_rows > x_ND.shape[0]:
      raise ValueError(
        f'tile_rows={self.tile_rows} is more than the {x_ND.shape[0]} tokens '
        'of a call, so that no expert can fill a tile; lower it, or train on '
        'more tokens at a time.'
      )
    affinity_NE = self.affinity(chosen.logits_NE)
    wanted_E = chosen.counts_E().astype(jnp.int32)
    rows_E = rounded(
      wanted_E, ctx.valid_N.sum(), self.tile_rows, chosen.ids_NK.size
    )
    moved = jnp.abs(rows_E - wanted_E).sum() / jnp.maximum(wanted_E.sum(), 1)
    self.sow('stats', 'rounded_frac', moved.astype(jnp.float32))
    most = self.tile_rows - 1
    return fill(chosen, affinity_NE, ctx.valid_N, wanted_E, rows_E, most)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    return self.inner.flops(width)


def rounded(
  wanted_E: jax.Array, tokens: jax.Array, tile_rows: int, most_rows: int
) -> jax.Array:
  """int32 [E]: `wanted_E` to multiples of `tile_rows`, by largest remainder.

  Args:
    wanted_E: int32.
    tokens: int32 scalar, what an expert can have at most.
    tile_rows: see `TokenRounding`.
    most_rows: of all experts together.
  """
  tiles_E, rest_E = wanted_E // tile_rows, wanted_E % tile_rows
  total = (wanted_E.sum() + tile_rows // 2) // tile_rows
  total = jnp.minimum(total, most_rows // tile_rows)
  may_E = (rest_E > 0) & ((tiles_E + 1) * tile_rows <= tokens)
  order_E = jnp.argsort(jnp.where(may_E, -rest_E, 1), stable=True)
  rank_E = jnp.zeros_like(order_E).at[order_E].set(jnp.arange(order_E.size))
  up_E = may_E & (rank_E < total - tiles_E.sum())
  rows_E = (tiles_E + up_E) * tile_rows
  return jnp.where(tokens >= tile_rows, rows_E, wanted_E)


def fill(
  chosen: Chosen,
  affinity_NE: jax.Array,
  valid_N: jax.Array,
  wanted_E: jax.Array,
  rows_E: jax.Array,
  most: int,
) -> Pairs:
  """`rows_E` pairs for each expert: the best chosen ones, then the best others.

  Args:
    chosen: what the tokens chose.
    affinity_NE: ranks and weighs the tokens that did not choose an expert.
    valid_N: bool, the tokens that are not padding.
    wanted_E: int32, pairs of each expert in `chosen`.
    rows_E: int32, at most `most` more than `wanted_E`.
    most: a bound on the pairs added to an expert.
  """
  (n, k), num_experts = chosen.ids_NK.shape, chosen.num_experts
  id_R, weight_R = chosen.ids_NK.reshape(-1), chosen.weights_NK.reshape(-1)
  row_R = jnp.arange(n * k, dtype=jnp.int32)

  # 1. Chosen pairs by expert, those of the largest weight first.
  keys = (id_R, -jax.lax.stop_gradient(weight_R), row_R)
  by_weight_R = jax.lax.sort(keys, num_keys=2)[2]

  # 2. For each expert the tokens that did not choose it, best first.
  other_NE = valid_N[:, None] & (chosen.counts_NE() == 0)
  score_NE = jnp.where(other_NE, jax.lax.stop_gradient(affinity_NE), -jnp.inf)
  other_EM = jax.lax.top_k(score_NE.T, min(n, max(most, 1)))[1]

  # 3. Row r is the `place`-th of its expert.
  expert_R = jnp.searchsorted(jnp.cumsum(rows_E), row_R, side='right')
  e_R = jnp.minimum(expert_R, num_experts - 1)
  place_R = row_R - (jnp.cumsum(rows_E) - rows_E)[e_R]
  was_chosen_R = place_R < wanted_E[e_R]
  from_R = (jnp.cumsum(wanted_E) - wanted_E)[e_R] + place_R
  pair_R = by_weight_R.at[from_R].get(mode='clip')
  other_R = other_EM.at[e_R, place_R - wanted_E[e_R]].get(mode='clip')
  # Named, so that rematerialisation keeps the choice and cannot re-route.
  named = (expert_R.astype(jnp.int32), was_chosen_R, pair_R, other_R)
  expert_R, was_chosen_R, pair_R, other_R = checkpoint_name(named, CHOICE)

  # 4. Weights last: they alone have a gradient.
  e_R = jnp.minimum(expert_R, num_experts - 1)
  weights_R = jnp.where(
    was_chosen_R, weight_R[pair_R], affinity_NE[other_R, e_R]
  )
  tokens_R = jnp.where(was_chosen_R, pair_R // k, other_R)
  live_R = expert_R < num_experts
  return Pairs(
    tokens_R=jnp.where(live_R, tokens_R, 0).astype(jnp.int32),
    ids_R=expert_R,
    weights_R=jnp.where(live_R, weights_R, 0.0),
    logits_NE=chosen.logits_NE,
  )
