"""The usual router: score, select, weigh."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.types import Chosen, Context


class Router(nn.Module):
  """Scores all experts, selects k per token, weighs the selected.

  Source: 1701.06538 sec. 2; the selection bias is 2408.15664 eq. 3.

  Attributes:
    score: `x_ND -> logits_NE`.
    k: experts per token.
    select: `(affinity_NE, k) -> ids_NK`.
    weigh: `(chosen_NK, logits_NE) -> weights_NK`.
    affinity: `logits_NE -> affinity_NE`, what is ranked and biased; None
      ranks the logits.
    selection_bias: whether a bias per expert, moved by `train.bias_update`
      and never by gradients, is added for selection only.
  """

  score: nn.Module
  k: int
  select: Callable
  weigh: Callable
  affinity: Callable | None = None
  selection_bias: bool = False

  causal = True

  @nn.compact
  def __call__(self, x_ND: jax.Array, ctx: Context) -> Chosen:
    logits_NE = self.score(x_ND)
    affinity_NE = self.affinity(logits_NE) if self.affinity else logits_NE
    if self.selection_bias:
      affinity_NE = affinity_NE + self._bias(logits_NE.shape[-1])
    ids_NK = self.select(jax.lax.stop_gradient(affinity_NE), self.k)
    # Named, so that rematerialisation keeps the choice and cannot re-route.
    ids_NK = checkpoint_name(ids_NK, 'router_ids')
    chosen_NK = jnp.take_along_axis(logits_NE, ids_NK, axis=-1)
    weights_NK = self.weigh(chosen_NK, logits_NE)
    valid_N1 = ctx.valid_N[:, None]
    chosen = Chosen(
      ids_NK=jnp.where(valid_N1, ids_NK, logits_NE.shape[-1]),
      weights_NK=jnp.where(valid_N1, weights_NK, 0.0),
      logits_NE=logits_NE,
    )
    if self.selection_bias:
      self._count(chosen)
    return chosen

  def _bias(self, num_experts: int) -> jax.Array:
    zeros = (jnp.zeros, (num_experts,), jnp.float32)
    return self.variable('balance', 'bias', *zeros).value

  def _count(self, chosen: Chosen) -> None:
    """Adds to the counts that the bias update reads after the step."""
    counts = self.variable(
      'balance', 'counts', jnp.zeros, (chosen.num_experts,), jnp.float32
    )
    if self.is_mutable_collection('balance') and not self.is_initializing():
      counts.value = counts.value + chosen.counts_E()

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    return self.score.flops(width)
