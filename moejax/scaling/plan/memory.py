"""Whether the program of each cell fits into a chip's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from moejax import config_io
from moejax.scaling.plan.count import Counted

# A config to the bytes of its training step on a chip, and to the limit.
# None: it was not asked.
Gate = Callable[[ConfigDict], tuple[float, float] | None]


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The gate that compiles each cell's training step ahead of time.

  Attributes:
    topology: such as 'v5p:4x4x2'; None asks nobody.
  """

  topology: str | None = None

  def __call__(self, config: ConfigDict) -> tuple[float, float] | None:
    """Bytes on a chip and their limit."""
    if self.topology is None:
      return None
    # Here: a plan without a gate does not need what compiles for others.
    from moejax import aot

    found = aot.check(config, self.topology).memory
    return found.total, found.limit


# What changes a program in numbers only.
_NUMBERS = {
  'labels': {},
  'seed': 0,
  'train.steps': 1,
  'train.budget_flops': None,
  'optim.schedule.peak': 1.0,
}


def ask(gate: Gate, cells: Iterable[Counted]) -> dict[str, tuple[float, float]]:
  """Cell name -> bytes and limit; cells of one program are asked of once."""
  known, out = {}, {}
  for one in cells:
    key = config_io.to_json(config_io.override(one.config, _NUMBERS))
    if key not in known:
      known[key] = gate(one.config)
    if known[key] is not None:
      out[one.cell.name] = known[key]
  return out


def refusal(needed: float, limit: float) -> str | None:
  """Why a cell does not fit, None where it does."""
  if needed <= limit:
    return None
  return (
    f'needs {needed / 2**30:.1f} GiB on each chip, of {limit / 2**30:.1f}; use '
    'more chips, a larger config.train.accumulate, or model.remat'
  )
