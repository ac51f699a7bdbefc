"""Forced routes, for benchmarks: the choice is made up, the weights are real.

Each wraps a `Router` and replaces what it selects; the weights are those that
the router gives to the forced choice, from its own logits, so that all
gradients exist and cost what they cost. A model that is to learn something
wants none of these.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.types import Chosen, Context
from pallas_kernels.route.api import CHOICE


class _Forced(nn.Module):
  """Replaces the choice of `inner`."""

  inner: nn.Module

  @property
  def k(self) -> int:
    """Experts per token."""
    return self.inner.k

  @nn.compact
  def __call__(self, x_ND: jax.Array, ctx: Context) -> Chosen:
    chosen = self.inner(x_ND, ctx)
    logits_NE, num_experts = chosen.logits_NE, chosen.num_experts
    ids_NK = self.choose(jax.lax.stop_gradient(logits_NE), ctx)
    # Named, so that rematerialisation keeps the choice and cannot re-route.
    ids_NK = checkpoint_name(ids_NK, CHOICE)
    chosen_NK = jnp.take_along_axis(logits_NE, ids_NK, axis=-1)
    weights_NK = self.inner.weigh(chosen_NK, logits_NE)
    valid_N1 = ctx.valid_N[:, None]
    return chosen.replace(
      ids_NK=jnp.where(valid_N1, ids_NK, num_experts).astype(jnp.int32),
      weights_NK=jnp.where(valid_N1, weights_NK, 0.0),
    )

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    return self.inner.flops(width)


class RoundRobin(_Forced):
  """Forced: experts in turn, so that all have the same load, up to one token.

  The K experts of a token are K neighbours.

  Attributes:
    inner: a `Router`.
  """

  # By the place of a token in the call, which differs when decoding.
  causal = False

  def choose(self, logits_NE: jax.Array, ctx: Context) -> jax.Array:
    """ids_NK: n K + k modulo E, where n counts the tokens that are real."""
    num_experts = logits_NE.shape[-1]
    place_N = jnp.cumsum(ctx.valid_N) - 1
    # Reduced first: n K would overflow for long calls.
    first_N = (place_N % num_experts) * self.k % num_experts
    return (first_N[:, None] + jnp.arange(self.k)) % num_experts


class Sampled(_Forced):
  """Forced: K different experts at random, evenly or by a power law.

  The expert of rank r (from 1) is drawn in proportion to r^-exponent, without
  replacement, so that with a large exponent the first K experts get all
  tokens. Ranks are shuffled among the experts. Every call with as many tokens
  and every layer draw the same.

  Attributes:
    inner: a `Router`.
    exponent: 0 draws evenly, 1 by Zipf's law.
    seed: of the ranks and of the draws.
  """

  exponent: float = 0.0
  seed: int = 0

  # By the place of a token in the call, which differs when decoding.
  causal = False

  def choose(self, logits_NE: jax.Array, ctx: Context) -> jax.Array:
    """ids_NK: the K largest of log-probability plus Gumbel noise."""
    del ctx
    if not self.exponent >= 0:
      raise ValueError(
        f'exponent={self.exponent} must be at least 0: 0 for an even draw, 1 '
        "for Zipf's law."
      )
    num_experts = logits_NE.shape[-1]
    ranks, draws = jax.random.split(jax.random.key(self.seed))
    rank_E = 1 + jax.random.permutation(ranks, num_experts)
    noise_NE = jax.random.gumbel(draws, logits_NE.shape)
    log_p_E = -self.exponent * jnp.log(rank_E.astype(jnp.float32))
    return jax.lax.top_k(log_p_E + noise_NE, self.k)[1]


class Biased(_Forced):
  """Forced: selects by logits plus a fixed random number for each expert.

  A token's own logits still count; the larger `std` is beside theirs, the
  fewer experts get the tokens.

  Attributes:
    inner: a `Router`; its selection bias, if any, is left out.
    std: of the normal numbers, in units of the logits.
    seed: of the numbers; all layers have the same.
  """

  std: float = 1.0
  seed: int = 0

  @property
  def causal(self) -> bool:
    """Whether `inner` is: the numbers are the same for all tokens."""
    return self.inner.causal

  def choose(self, logits_NE: jax.Array, ctx: Context) -> jax.Array:
    """ids_NK: what `inner` selects by the biased logits."""
    del ctx
    if not self.std >= 0:
      raise ValueError(
        f'std={self.std} must be at least 0; 0 leaves the choice as it is.'
      )
    key = jax.random.key(self.seed)
    biased_NE = logits_NE + self.std * jax.random.normal(
      key, logits_NE.shape[-1:]
    )
    affinity = self.inner.affinity
    return self.inner.select(
      affinity(biased_NE) if affinity else biased_NE, self.k
    )
