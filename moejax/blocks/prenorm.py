"""The usual block."""

from __future__ import annotations

import flax.linen as nn

from moejax import costs
from moejax.nn import RmsNorm
from moejax.types import Context, State, Stream


class PreNorm(nn.Module):
  """x + mixer(norm(x)), then x + ffn(norm(x)).  Source: 2002.04745 fig. 1b.

  Attributes:
    mixer: `(x_BTD, ctx, state) -> (y_BTD, state)`.
    ffn: `(x_BTD, ctx) -> y_BTD`; None leaves the second half out.
  """

  mixer: nn.Module
  ffn: nn.Module | None = None

  @nn.compact
  def __call__(
    self, stream: Stream, ctx: Context, state: State = None
  ) -> tuple[Stream, State]:
    x = stream.x_BTD
    y, state = self.mixer(RmsNorm(name='mixer_norm')(x), ctx, state)
    x = x + y
    if self.ffn is not None:
      x = x + self.ffn(RmsNorm(name='ffn_norm')(x), ctx)
    return stream.replace(x_BTD=x), state

  def init_state(self, batch, length, width, dtype) -> State:
    """The mixer's decode state."""
    return self.mixer.init_state(batch, length, width, dtype)

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    return {
      f'{name}/{path}': frac
      for name in ('mixer', 'ffn')
      for path, frac in costs.told(getattr(self, name), 'active_fracs').items()
    }

  def rows_read(self) -> dict[str, int]:
    """Rows of shared tables that one token reads, by the table's name."""
    return costs.told(self.ffn, 'rows_read')

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`."""
    return sum(self.flops_by_path(width, length).values())

  def flops_by_path(self, width: int, length: int) -> dict[str, float]:
    """The same for the parameters under each path."""
    parts = {'mixer': self.mixer.flops(width, length)}
    if self.ffn is None:
      return parts
    return parts | costs.flops_under('ffn', self.ffn, width)
