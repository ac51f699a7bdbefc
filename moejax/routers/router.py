"""The usual router: score, select, weigh."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moejax.routers import fused
from moejax.types import Chosen, Context
from pallas_kernels.route.api import CHOICE, top_k_route


class Router(nn.Module):
  """Scores all experts, selects k per token, weighs the selected.

  Source: 1701.06538 sec. 2; the selection bias is 2408.15664 eq. 3.

  Where one kernel knows all three parts (`routers.fused` says which), it does
  their work; any other parts are called one after the other.

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
    bias_E = self._bias(logits_NE.shape[-1]) if self.selection_bias else None
    known = fused.arguments(self.affinity, self.select, self.weigh)
    if known is not None and logits_NE.dtype == jnp.float32:
      ids_NK, weights_NK, _ = top_k_route(
        logits_NE, self.k, bias_E=bias_E, valid_N=ctx.valid_N, **known
      )
    else:
      ids_NK, weights_NK = self._composed(logits_NE, bias_E, ctx.valid_N)
    chosen = Chosen(ids_NK=ids_NK, weights_NK=weights_NK, logits_NE=logits_NE)
    if self.selection_bias:
      self._count(chosen)
    return chosen

  def _composed(self, logits_NE, bias_E, valid_N):
    """The parts one after the other, whatever they are."""
    affinity_NE = self.affinity(logits_NE) if self.affinity else logits_NE
    if bias_E is not None:
      affinity_NE = affinity_NE + bias_E
    ids_NK = self.select(jax.lax.stop_gradient(affinity_NE), self.k)
    # Named, so that rematerialisation keeps the choice and cannot re-route.
    ids_NK = checkpoint_name(ids_NK, CHOICE)
    chosen_NK = jnp.take_along_axis(logits_NE, ids_NK, axis=-1)
    weights_NK = self.weigh(chosen_NK, logits_NE)
    ids_NK = jnp.where(valid_N[:, None], ids_NK, logits_NE.shape[-1])
    return ids_NK, jnp.where(valid_N[:, None], weights_NK, 0.0)

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
