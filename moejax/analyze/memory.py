"""Which slots memories find."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.analyze.observe import observed
from moejax.memory.halves import Halves
from moejax.memory.scored import Scored
from moejax.model import Model
from moejax.types import Context

_TOKENS = 16  # whose S x S scores exist at a time


def filter_recall(
  model: Model, variables: Any, ctx: Context
) -> list[jax.Array]:
  """The share of the best slots that a filter by halves keeps.

  All S^2 slots of every token are scored, which training never does. The filter
  is that of 2411.12364 sec. 3.2.

  Args:
    model: any model with memories such as `memory.Tucker`.
    variables: its parameters and balance state.
    ctx: tokens, int32 [B, T].

  Returns:
    f32 [] in [0, 1] of each such memory, in the order of the layers: the mean
    over tokens but padding and over heads.
  """
  halves = []

  def read(result, call, args, method):
    del call, args
    module = method.module
    if isinstance(module, Halves):
      halves[:] = result
    if not isinstance(module, Scored) or method.method_name != '_retrieve':
      return None
    core_HRR = nn.unbox(module.get_variable('params', 'cores')).sum(0)
    found_N = recall(*halves, core_HRR, result[0]).mean(1)
    total = jnp.where(ctx.valid_N, found_N, 0).sum()
    return total / jnp.maximum(ctx.valid_N.sum(), 1)

  return observed(model, variables, ctx, read)


def recall(
  left_NHSR: jax.Array,
  right_NHSR: jax.Array,
  core_HRR: jax.Array,
  ids_NHK: jax.Array,
) -> jax.Array:
  """f32 [N, H]: how many of K slots are among the K best of all, by K.

  Args:
    left_NHSR, right_NHSR: as of `retrieval.tucker_top_k`.
    core_HRR: the sum of the cores.
    ids_NHK: int32 in [0, S^2).
  """
  k = ids_NHK.shape[-1]

  def one(args):
    left_HSR, right_HSR, ids_HK = args
    grid = jnp.einsum('har,hrq,hbq->hab', left_HSR, core_HRR, right_HSR)
    grid = grid.reshape(len(grid), -1)
    least = jax.lax.top_k(grid, k)[0][:, -1:]
    return (jnp.take_along_axis(grid, ids_HK, -1) >= least).mean(-1)

  args = left_NHSR, right_NHSR, ids_NHK
  return jax.lax.map(one, args, batch_size=_TOKENS)
