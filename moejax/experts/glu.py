"""Gated feed-forward experts."""

from collections.abc import Callable

import flax.linen as nn

from moejax.nn import activations, expert_matrix
from moejax.types import Rows


class Glu(nn.Module):
  """down(activation(gate x) * up x), a matrix of each kind per expert.

  Source: 2002.05202 eq. 6.

  Attributes:
    hidden: F, the width of each expert.
    num_experts: E; 1 makes a dense feed-forward.
    activation: of the gate.
  """

  hidden: int
  num_experts: int = 1
  activation: Callable = activations.silu

  @nn.compact
  def __call__(self, rows: Rows) -> Rows:
    e, d, f = self.num_experts, rows.width, self.hidden
    gate = expert_matrix(self, 'gate', ('embed', 'mlp'), (e, d, f))
    up = expert_matrix(self, 'up', ('embed', 'mlp'), (e, d, f))
    down = expert_matrix(self, 'down', ('mlp', 'embed'), (e, f, d))
    return rows.feed_forward(gate, up, down, self.activation)

  def flops(self, width: int) -> float:
    """Forward FLOPs of one row."""
    return 6 * width * self.hidden
