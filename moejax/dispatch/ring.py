"""Exchange by gathering tokens and scattering sums."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax import lax

from moejax.dispatch import exchange, traffic
from moejax.types import Chosen


class Ring(nn.Module):
  """Every rank sees the tokens of all, and computes those of its experts.

  All-gather of tokens, reduce-scatter of outputs: the bytes do not depend on
  what tokens choose, none is dropped, and a rank's buffers have room for all of
  the group's choices. For few ranks, or many experts per token.

  Attributes:
    stages: parts of the tokens, of which one can travel while another is
      computed.
    limit: `Chosen -> (Chosen, dropped share)`, such as `capacity.limit` with
      its factor; None drops nothing.
  """

  stages: int = 1
  limit: Callable | None = None

  accepts = (Chosen,)

  @nn.compact
  def __call__(self, assignment: Chosen, x_ND: jax.Array, experts):
    assignment = exchange.limited(self, assignment)
    y_ND, _ = exchange.across(
      _gather, assignment, x_ND, experts, stages=self.stages
    )
    return y_ND

  def collective_bytes(self, layer: traffic.Layer) -> dict[str, float]:
    """Bytes that a device sends, by kind of collective."""
    return traffic.ring(layer)


def _gather(group, call, x_ND, slots_NK, weights_NK, matrices):
  x_ND, slots_NK, weights_NK = (
    lax.all_gather(a, group.axes, tiled=True)
    for a in (x_ND, slots_NK, weights_NK)
  )
  y_ND = call(x_ND, group.local(slots_NK), weights_NK, matrices)
  y_ND = lax.psum_scatter(y_ND, group.axes, scatter_dimension=0, tiled=True)
  return y_ND, {}
