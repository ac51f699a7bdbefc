"""Plain feed-forward experts."""

from collections.abc import Callable

import flax.linen as nn

from moejax.nn import activations, expert_matrix
from moejax.types import Rows


class Mlp(nn.Module):
  """down(activation(up x)), two matrices per expert; no bias.

  Source: 1706.03762 eq. 2.

  Attributes:
    hidden: F, the width of each expert.
    num_experts: E; 1 makes a dense feed-forward.
    activation: of the hidden units.
  """

  hidden: int
  num_experts: int = 1
  activation: Callable = activations.gelu

  @nn.compact
  def __call__(self, rows: Rows) -> Rows:
    e, d, f = self.num_experts, rows.width, self.hidden
    up = expert_matrix(self, 'up', ('embed', 'mlp'), (e, d, f))
    down = expert_matrix(self, 'down', ('mlp', 'embed'), (e, f, d))
    return rows.feed_forward(up, None, down, self.activation)

  def flops(self, width: int) -> float:
    """Forward FLOPs of one row."""
    return 4 * width * self.hidden
