"""Where a search moves: the logs of what is positive, the rest as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.stats.qmc

from moejax.scaling import forms

# Exponents of losses are found from these.
USUAL = (0.05, 1.0)
MOST_STARTS = 32


@dataclasses.dataclass(frozen=True)
class Space:
  """Exponents and shape parameters as one vector within bounds."""

  names: tuple[str, ...]
  low: np.ndarray
  high: np.ndarray
  logs: np.ndarray
  usual: np.ndarray

  @classmethod
  def of(cls, form: forms.PowerSum, names) -> Space:
    """The space of these parameters of the law."""
    ranges = [form.range_of(n) for n in names]
    logs = np.array([low > 0 for low, _ in ranges], bool)
    low, high = np.array(ranges, float).reshape(-1, 2).T
    usual = np.array([USUAL if n not in form.ranges else (0, 0) for n in names])
    space = cls(tuple(names), low, high, logs, usual.reshape(-1, 2))
    return dataclasses.replace(space, low=space._in(low), high=space._in(high))

  def _in(self, values):
    return np.where(self.logs, np.log(np.where(self.logs, values, 1)), values)

  def point(self, theta: forms.Theta) -> np.ndarray:
    """The vector of these parameters, moved inside the bounds."""
    raw = self._in(np.array([theta[n] for n in self.names], float))
    return np.clip(raw, self.low, self.high)

  def theta(self, point: np.ndarray) -> dict[str, float]:
    """The parameters at a vector."""
    values = np.where(self.logs, np.exp(np.where(self.logs, point, 0)), point)
    return dict(zip(self.names, map(float, values), strict=True))

  def starts(self, seed: int = 0) -> np.ndarray:
    """Points spread over where such parameters lie, `[starts, names]`."""
    size = len(self.names)
    if size == 0:
      return np.zeros((1, 0))
    sampler = scipy.stats.qmc.LatinHypercube(size, rng=seed)
    cube = sampler.random(min(4**size, MOST_STARTS))
    middle = 0.2 + 0.6 * cube
    spread = self.low + middle * (self.high - self.low)
    default = self.usual[:, 1] > 0
    low, high = np.log(np.where(self.usual > 0, self.usual, 1)).T
    return np.where(default, low + cube * (high - low), spread)
