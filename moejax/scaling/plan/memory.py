"""Whether the program of each cell fits into a chip's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from moejax import config_io
from moejax.scaling.plan.count import Counted

# A config to the bytes of its training step on a chip, and to the limit.
Gate = Callable[[ConfigDict], tuple[float, float]]
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
