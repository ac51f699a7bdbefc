"""How fast a cell trains: measured on earlier runs, or stated of a chip."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from moejax import metrics
from moejax.scaling import runs
from moejax.scaling.plan.count import Counted


@dataclasses.dataclass(frozen=True)
class Measured:
  """FLOPs/s of earlier runs, by variant and size.

  Between measured sizes the logs are interpolated; beyond them the last one
  counts. A variant that was not run takes the rates of all runs.

  Attributes:
    path: `results.csv` of a sweep on the same machine.
    size: the count of parameters by which runs are told apart.
  """

  path: str
  size: str = 'params_active'

  def __call__(self, cells: list[Counted]) -> list[float | None]:
    """FLOPs/s of each cell; None where there is no file."""
    if not pathlib.Path(self.path).is_file():
      return [None] * len(cells)
    good, _ = runs.parse(runs.load(self.path), self.size)
    found = [(r, r.flops / float(r.row['seconds'])) for r in good]
    out = []
    for one in cells:
      mine = [p for p in found if p[0].variant == one.variant] or found
      out.append(_interpolated(mine, one.size))
    return out

  def told(self) -> str:
    if not pathlib.Path(self.path).is_file():
      return f'unknown: there is no {self.path}'
    return f'measured in {self.path}; compilation and evaluation are left out'


def _interpolated(found, size) -> float:
  sizes = np.array([r.size for r, _ in found])
  rates = np.log([rate for _, rate in found])
  known = np.unique(sizes)
  mean = [rates[sizes == n].mean() for n in known]
  return float(np.exp(np.interp(np.log(size), np.log(known), mean)))


@dataclasses.dataclass(frozen=True)
class Chip:
  """A share of the peak of some chips.

  Attributes:
    device: as jax names the device, such as 'TPU v5p'.
    count: chips that a cell runs on.
    utilisation_frac: useful FLOPs over peak FLOPs, a guess.
  """

  device: str
  count: int = 1
  utilisation_frac: float = 0.4

  def __post_init__(self):
    if metrics.known_peak_flops(self.device) is None:
      raise ValueError(
        f'device={self.device!r} has no known peak; name a device as jax does, '
        "such as 'TPU v5p' or 'NVIDIA H100 80GB HBM3'."
      )
    if not (self.count >= 1 and 0 < self.utilisation_frac <= 1):
      raise ValueError(
        f'count={self.count}, utilisation_frac={self.utilisation_frac}: use at '
        'least one chip and a fraction above 0 and at most 1.'
      )

  def __call__(self, cells: list[Counted]) -> list[float | None]:
    """FLOPs/s of each cell."""
    peak = metrics.known_peak_flops(self.device)
    return [peak * self.count * self.utilisation_frac] * len(cells)

  def told(self) -> str:
    return (
      f'{self.count} x {self.device} at {100 * self.utilisation_frac:g} % of '
      'peak, as stated'
    )
