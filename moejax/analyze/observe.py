"""What calls within a model make, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from moejax import stats
from moejax.model import Model
from moejax.types import Context

_NAME = 'observed'


def observed(
  model: Model,
  variables: Any,
  ctx: Context,
  read: Callable[..., jax.Array | None],
) -> list[jax.Array]:
  """What `read` makes of the calls of a forward pass, in the order of layers.

  Args:
    model: any model.
    variables: its parameters and balance state.
    ctx: tokens, int32 [B, T].
    read: (result, call, args, method) -> what to keep of a call, or None;
      `call` makes it again, with other arguments.
  """

  def observe(call, args, kwargs, method):
    result = call(*args, **kwargs)
    kept = read(result, call, args, method)
    if kept is not None:
      # Into a collection that the scan over layers carries.
      method.module.sow('stats', _NAME, kept)
    return result

  # What stages sow is summed up over micro-batches.
  model = model.clone(pipeline=None)
  with nn.intercept_methods(observe):
    _, written = model.apply(variables, ctx, mutable=['stats'])
  groups = stats.per_layer(written.get('stats', {})).get(_NAME, [])
  return stats.in_order(groups)
