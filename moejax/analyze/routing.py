"""Which experts the tokens go to."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import stats
from moejax.model import Model
from moejax.moe import Moe
from moejax.types import Chosen, Context


def choices(
  model: Model, variables: Any, ctx: Context
) -> tuple[jax.Array, ...]:
  """Expert ids that the routers choose, in the order of the layers.

  Args:
    model: any model whose routers make `Chosen` assignments.
    variables: its parameters and balance state.
    ctx: tokens, int32 [B, T].

  Returns:
    int32 [L, N, K] for each group of like layers; the number of experts
    stands for "no expert", as at padding.
  """

  def observe(call, args, kwargs, method):
    result = call(*args, **kwargs)
    owner = method.module.parent
    if isinstance(result, Chosen) and isinstance(owner, Moe):
      # Sown by the composer, into a collection that the scan carries.
      owner.sow('stats', 'router_ids', result.ids_NK)
    return result

  with nn.intercept_methods(observe):
    _, written = model.apply(variables, ctx, mutable=['stats'])
  return stats.per_layer(written['stats']).get('router_ids', ())


def counts_by_token(
  ids_LNK: jax.Array, tokens_BT: jax.Array, vocab: int, num_experts: int
) -> jax.Array:
  """f32 [L, V, E]: how often each token id went to each expert of a layer.

  Its sum over V is the load of each expert.
  """
  k = ids_LNK.shape[-1]
  token_R = jnp.repeat(tokens_BT.reshape(-1), k)

  def one(ids_NK):
    none = jnp.zeros((vocab, num_experts), jnp.float32)
    # An id of num_experts lies outside and is dropped.
    return none.at[token_R, ids_NK.reshape(-1)].add(1.0, mode='drop')

  return jax.vmap(one)(ids_LNK)
