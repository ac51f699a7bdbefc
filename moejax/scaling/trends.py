"""Does efficiency leverage move with compute, activation or granularity?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from moejax import page
from moejax.scaling import resample
from moejax.scaling.leverage import Leverage

COMPUTE = 'compute'
ACTIVATION = 'activation ratio'
GRANULARITY = 'granularity'


@dataclasses.dataclass(frozen=True)
class Trend:
  """Slope of log leverage along the log of one axis.

  Attributes:
    axis: COMPUTE, ACTIVATION or GRANULARITY.
    where: what is held still: a variant, a budget, or 'all' with an intercept
      for each of them.
    slope: d log EL / d log axis.
    interval: of the slope, over draws in which dense and sparse vertices are
      redrawn together.
    points: leverages that it is read off.
    extrapolated: how many of them lie outside the budgets of dense.
    inside: the slope without those, with its interval; None if nothing is left
      or none was extrapolated.
    lost: share of draws without a finite slope.
  """

  axis: str
  where: str
  slope: float
  interval: resample.Interval | None
  points: int
  extrapolated: int
  inside: tuple[float, resample.Interval | None] | None
  lost: float

  @property
  def sign(self) -> int:
    """+1 or -1 where the 95 % interval excludes 0, else 0."""
    if self.interval is None:
      return 0
    return int(self.interval.low95 > 0) - int(self.interval.high95 < 0)


def trends(of: Sequence[Leverage], dense: str) -> list[Trend]:
  """Every slope that at least two leverages of sparse variants support."""
  of = [l for l in of if l.variant != dense and l.value is not None]
  out = _along(COMPUTE, of, lambda l: l.flops, lambda l: l.variant)
  ratios = [l for l in of if l.activation > 0]
  out += _along(
    ACTIVATION,
    ratios,
    lambda l: l.activation,
    lambda l: (l.budget, _still(l.granularity)),
  )
  cut = [l for l in ratios if l.granularity > 0]
  out += _along(
    GRANULARITY,
    cut,
    lambda l: l.granularity,
    lambda l: (l.budget, _still(l.activation)),
  )
  return out


def _still(value: float) -> float | None:
  return None if math.isnan(value) else float(f'{value:.6g}')


def _along(
  axis: str,
  of: Sequence[Leverage],
  place: Callable[[Leverage], float],
  still: Callable[[Leverage], Hashable],
) -> list[Trend]:
  """One trend per group that moves along the axis, and one over all."""
  groups: dict[Hashable, list[Leverage]] = {}
  for one in of:
    groups.setdefault(still(one), []).append(one)
  moving = {
    key: mine
    for key, mine in groups.items()
    if len({_still(place(l)) for l in mine}) > 1
  }
  out = [
    _trend(axis, _name(key), [mine], place) for key, mine in moving.items()
  ]
  if len(moving) > 1:
    out.append(_trend(axis, 'all', list(moving.values()), place))
  return out


def _name(key) -> str:
  if isinstance(key, str):
    return key
  budget, other = key
  return f'{page.number(budget, 3)} FLOPs' + (
    '' if other is None else f', {other:g}'
  )


def _trend(axis, where, groups, place) -> Trend:
  slope, drawn = _slope(groups, place)
  flat = [l for mine in groups for l in mine]
  far = [l for l in flat if l.extrapolation]
  near = [[l for l in mine if not l.extrapolation] for mine in groups]
  near = [g for g in near if len({_still(place(l)) for l in g}) > 1]
  inside = None
  if far and near:
    again, redrawn = _slope(near, place)
    inside = (again, resample.interval(redrawn))
  lost = 0.0 if drawn is None else float(1 - np.isfinite(drawn).mean())
  return Trend(
    axis,
    where,
    slope,
    resample.interval(drawn),
    len(flat),
    len(far),
    inside,
    lost,
  )


def _slope(groups, place) -> tuple[float, np.ndarray | None]:
  """Least-squares slope in logs, an intercept per group, and its draws."""
  x = [np.log([place(l) for l in mine]) for mine in groups]
  centred = np.concatenate([part - part.mean() for part in x])
  weights = centred / np.sum(centred**2)
  flat = [l for mine in groups for l in mine]
  slope = float(weights @ np.log([l.value for l in flat]))
  if any(l.draws is None for l in flat):
    return slope, None
  table = np.stack([l.draws for l in flat], 1)
  finite = np.isfinite(table) & (table > 0)
  logs = np.log(np.where(finite, table, 1.0))
  return slope, np.where(finite.all(1), logs @ weights, np.nan)
