"""Where softmax attention looks."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import stats
from moejax.mixers.block_routed import BlockCore
from moejax.mixers.core import Core
from moejax.model import Model
from moejax.types import Context

_NAME = 'first_token_mass'


def first_token_mass(model: Model, variables: Any, ctx: Context) -> jax.Array:
  """The share of attention that goes to the first token of a document.

  A head whose share is far above 1 / tokens uses that token as a sink.
  Source: 2505.06708 sec. 4.3, there over whole sequences.

  Args:
    model: any model.
    variables: its parameters and balance state.
    ctx: tokens, int32 [B, T].

  Returns:
    f32 [L]: of each softmax mixer, in the order of the layers; the mean over
    heads and tokens, but for first tokens, which see nothing else.
  """

  def observe(call, args, kwargs, method):
    result = call(*args, **kwargs)
    if isinstance(method.module, Core | BlockCore):
      q, k, v, ctx = args[:4]
      # With values of 1 at the first token and 0 elsewhere, the result is
      # the share; of the size of the values, which kernels are known to take.
      first = (ctx.positions_BT == 0)[..., None, None]
      share = call(q, k, jnp.broadcast_to(first, v.shape).astype(v.dtype), ctx)
      later = ctx.valid_N.reshape(ctx.positions_BT.shape)
      later &= ctx.positions_BT > 0
      share_BT = share[..., 0].astype(jnp.float32).mean(-1)
      mean = jnp.where(later, share_BT, 0).sum() / jnp.maximum(later.sum(), 1)
      # Into a collection that the scan over layers carries.
      method.module.sow('stats', _NAME, mean)
    return result

  # What stages sow is summed up over micro-batches.
  model = model.clone(pipeline=None)
  with nn.intercept_methods(observe):
    _, written = model.apply(variables, ctx, mutable=['stats'])
  groups = stats.per_layer(written.get('stats', {})).get(_NAME, [])
  return jnp.asarray(stats.in_order(groups))
