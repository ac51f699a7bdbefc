"""Which experts the tokens go to."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from moejax.analyze.observe import observed
from moejax.model import Model
from moejax.types import Chosen, Context


def choices(model: Model, variables: Any, ctx: Context) -> list[jax.Array]:
  """Expert ids that the routers choose.

  Args:
    model: any model whose routers make `Chosen` assignments.
    variables: its parameters and balance state.
    ctx: tokens, int32 [B, T].

  Returns:
    ids_NK int32 of each router, in the order of the layers, a mixer's after
    its block's feed-forward; the number of experts stands for "no expert", as
    at padding.
  """

  def read(result, call, args, method):
    del call, args
    # Only what the composer calls: a router may hold others.
    if isinstance(result, Chosen) and method.module.name == 'router':
      return result.ids_NK
    return None

  return observed(model, variables, ctx, read)


def counts_by_token(
  ids_NK: jax.Array, tokens_BT: jax.Array, vocab: int, num_experts: int
) -> jax.Array:
  """f32 [V, E]: how often each token id went to each expert.

  Its sum over V is the load of each expert.
  """
  token_R = jnp.repeat(tokens_BT.reshape(-1), ids_NK.shape[-1])
  zeros = jnp.zeros((vocab, num_experts), jnp.float32)
  # The id of "no expert" lies outside and is dropped.
  return zeros.at[token_R, ids_NK.reshape(-1)].add(1.0, mode='drop')


def transitions(
  ids_NK: jax.Array, next_NK: jax.Array, num_experts: int, num_next: int
) -> jax.Array:
  """f32 [E, F]: tokens that have expert e in a layer and f in the next.

  Those of all pairs of layers, stacked, are what `placement.programme` weighs
  against the load.
  """
  now_NE, then_NF = (
    (ids[..., None] == jnp.arange(size)).any(1).astype(jnp.float32)
    for ids, size in ((ids_NK, num_experts), (next_NK, num_next))
  )
  return now_NE.T @ then_NF
