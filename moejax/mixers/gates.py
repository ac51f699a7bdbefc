"""Gates of the outputs of heads: `(y_BTHV, x_BTD, ctx) -> y_BTHV`.

They stand between softmax and output projection, and see the mixer's input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import stats
from moejax.mixers.low_rank import logits, logits_flops
from moejax.nn import Projection, activations
from moejax.types import Chosen, Context

__all__ = ['Gate', 'HeadMixture']


class Gate(nn.Module):
  """y * activation(x W), or y * activation(x U W), the factor in f32.

  Source: 2505.06708 eq. 5, at its position G1, with a sigmoid; 2412.06464
  fig. 1 with SiLU; 2510.26692 eq. 10 with a sigmoid and a rank.

  Attributes:
    activation: of the factor.
    rank: of U W; None for one matrix.
    headwise: whether all outputs of a head share one factor.
  """

  activation: Callable = activations.sigmoid
  rank: int | None = None
  headwise: bool = False

  @nn.compact
  def __call__(
    self, y_BTHV: jax.Array, x_BTD: jax.Array, ctx: Context
  ) -> jax.Array:
    del ctx
    shape = self._shape(*y_BTHV.shape[2:])
    factor = self.activation(logits(x_BTD, shape, self.rank))
    return (y_BTHV * factor).astype(y_BTHV.dtype)

  def _shape(self, heads, size):
    return heads, 1 if self.headwise else size

  def flops(self, width: int, heads: int, size: int) -> float:
    """Forward FLOPs per token."""
    return logits_flops(width, self._shape(heads, size), self.rank)


class HeadMixture(nn.Module):
  """Weighs heads: the first always, of the others those that a router picks.

  With two-way weights (a, b) = 2 softmax(x W), a shared head weighs a times
  its softmax among the S shared heads times S, and a routed one b times its
  router weight times k: on average 1.  Source: 2410.11842 sec. 3.2; the
  factors 2, S and k are those of the published code.
  Differs: every head is computed, and those not picked weigh 0. Any token may
  pick any head, so that all keys and values are needed; queries could be
  spared only where heads share them, as in `AttentionExperts`.

  Sows what `stats.sow_routing` says, with prefix `heads_`.

  Attributes:
    shared: S, heads that every token uses.
    router: picks among the other heads, and weighs them.
    balance: balance terms by name, `(assignment, ctx) -> scalar`.
  """

  shared: int
  router: nn.Module
  balance: Mapping[str, Callable] | None = None

  @nn.compact
  def __call__(
    self, y_BTHV: jax.Array, x_BTD: jax.Array, ctx: Context
  ) -> jax.Array:
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    chosen = self.router(x_ND, ctx)
    self._check(chosen, y_BTHV.shape[2])
    stats.sow_routing(self, chosen, ctx, self.balance, prefix='heads_')
    weights_NH = self.router.k * chosen.weights_NE()
    if self.shared:

      def softmax(name, size):
        logits = Projection((size,), ('embed', 'router'), name=name)(x_ND)
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

      always_NS = self.shared * softmax('shared', self.shared)
      first_N1, rest_N1 = jnp.split(2 * softmax('both', 2), 2, axis=-1)
      weights_NH = jnp.concatenate(
        [first_N1 * always_NS, rest_N1 * weights_NH], -1
      )
    weights = weights_NH.reshape(*y_BTHV.shape[:3], 1)
    return y_BTHV * weights.astype(y_BTHV.dtype)

  def _check(self, chosen, heads):
    if not isinstance(chosen, Chosen):
      raise ValueError(
        f'router {type(self.router).__name__} makes a {type(chosen).__name__} '
        'assignment, but heads want Chosen; use routers.Router.'
      )
    if self.shared + chosen.num_experts != heads:
      raise ValueError(
        f'shared={self.shared} and {chosen.num_experts} routed heads do not '
        f'make up heads={heads}; let the router score the rest.'
      )

  def flops(self, width: int, heads: int, size: int) -> float:
    """Forward FLOPs per token."""
    del heads, size
    ways = self.shared + 2 if self.shared else 0
    return self.router.flops(width) + 2 * width * ways
