"""Where softmax attention looks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from moejax.analyze.observe import observed
from moejax.mixers.block_routed import BlockCore
from moejax.mixers.core import Core
from moejax.model import Model
from moejax.types import Context


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

  def read(result, call, args, method):
    del result
    if not isinstance(method.module, Core | BlockCore):
      return None
    q, k, v, ctx = args[:4]
    # With values of 1 at the first token and 0 elsewhere, the result is the
    # share; of the size of the values, which kernels are known to take.
    first = (ctx.positions_BT == 0)[..., None, None]
    share = call(q, k, jnp.broadcast_to(first, v.shape).astype(v.dtype), ctx)
    later = ctx.valid_N.reshape(ctx.positions_BT.shape)
    later &= ctx.positions_BT > 0
    share_BT = share[..., 0].astype(jnp.float32).mean(-1)
    return jnp.where(later, share_BT, 0).sum() / jnp.maximum(later.sum(), 1)

  return jnp.asarray(observed(model, variables, ctx, read))
