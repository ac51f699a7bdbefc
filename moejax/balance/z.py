"""Router z-loss."""

import jax
import jax.numpy as jnp

from moejax.types import Chosen, Context, Pairs


def z(assignment: Chosen | Pairs, ctx: Context) -> jax.Array:
  """Mean over tokens of logsumexp(logits)^2; keeps router logits small.

  Source: 2202.08906 eq. 5.
  """
  square_N = jnp.square(jax.nn.logsumexp(assignment.logits_NE, axis=-1))
  total = jnp.sum(jnp.where(ctx.valid_N, square_N, 0.0))
  return total / jnp.maximum(ctx.valid_N.sum(), 1)
