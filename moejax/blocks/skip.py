"""Blocks whose memory's result joins the stream after a later block."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn

from moejax import costs
from moejax.blocks.prenorm import PreNorm
from moejax.nn import RmsNorm
from moejax.types import Context, State, Stream


class Skip(PreNorm):
  """A pre-norm block that reads for a later one, or takes what was read.

  The memory reads what the feed-forward reads; its result is held, and added
  to the stream at the end of the next block that `joins`. So looking up can
  take as long as the blocks between.

  Source: 2411.12364 (memory layers that skip blocks).

  Attributes:
    memory: `(x_BTD, ctx) -> y_BTD`, or None.
    joins: whether what an earlier block holds is added here.
  """

  memory: nn.Module | None = None
  joins: bool = False

  @nn.compact
  def __call__(
    self, stream: Stream, ctx: Context, state: State = None
  ) -> tuple[Stream, State]:
    x, held = stream.x_BTD, stream.held_BTD
    y, state = self.mixer(RmsNorm(name='mixer_norm')(x), ctx, state)
    x = x + y
    z = RmsNorm(name='ffn_norm')(x)
    if self.ffn is not None:
      x = x + self.ffn(z, ctx)
    if self.joins and held is not None:
      x, held = x + held, 0 * held
    if self.memory is not None:
      read = self.memory(z, ctx)
      held = read if held is None else held + read
    return stream.replace(x_BTD=x, held_BTD=held), state

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    own = costs.told(self.memory, 'active_fracs')
    return super().active_fracs() | {f'memory/{p}': f for p, f in own.items()}

  def rows_read(self) -> dict[str, int]:
    """Rows of shared tables that one token reads, by the table's name."""
    rows = super().rows_read()
    for name, count in costs.told(self.memory, 'rows_read').items():
      rows[name] = rows.get(name, 0) + count
    return rows

  def flops_by_path(self, width: int, length: int) -> dict[str, float]:
    """Forward FLOPs per token of the parameters under each path."""
    parts = super().flops_by_path(width, length)
    if self.memory is None:
      return parts
    return parts | costs.flops_under('memory', self.memory, width)


def holds(blocks: Sequence[nn.Module]) -> bool:
  """Whether any block, in the order of a model, holds what it has read.

  Raises:
    ValueError: if no block after it takes that.
  """
  held = None
  found = False
  for place, block in enumerate(blocks):
    if getattr(block, 'joins', False):
      held = None
    if getattr(block, 'memory', None) is not None:
      held, found = place, True
  if held is not None:
    raise ValueError(
      f'block {held} of {len(blocks)} reads a memory that no later block '
      'joins; set joins=True on one after it, or move the memory.'
    )
  return found
