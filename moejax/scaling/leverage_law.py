"""One law of efficiency leverage in activation, granularity and compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moejax.scaling import fit, forms, resample
from moejax.scaling.leverage import Leverage

LEAST_RATIOS = 3  # with dense
LEAST_BUDGETS = 3
# Ratios below which no saturation can be told from the exponent.
SATURATION_RATIOS = 3


@dataclasses.dataclass(frozen=True)
class LeverageLaw:
  """`forms.efficiency_leverage` through all leverages, and its foresight.

  Attributes:
    fit: on every sparse leverage, with bootstrap draws.
    ahead: on those below the largest budget; None if they are too few.
    points: the sparse leverages.
    predicted: by `fit`, or by `ahead` for those of the largest budget,
      `[points]`.
    intervals: of `predicted`, `[points]`.
    held_out: whether a point belongs to the largest budget and was predicted
      by `ahead`, bool `[points]`.
  """

  fit: fit.Fit
  ahead: fit.Fit | None
  points: tuple[Leverage, ...]
  predicted: np.ndarray
  intervals: tuple[resample.Interval | None, ...]
  held_out: np.ndarray


def leverage_law(of: Sequence[Leverage], dense: str) -> LeverageLaw:
  """The joint law; draws are those of the leverages, dense and sparse paired.

  Raises:
    fit.FitRefused: for fewer than three ratios (dense one of them) or budgets.
  """
  points = tuple(
    l
    for l in of
    if l.variant != dense and l.value is not None and 0 < l.activation < 1
  )
  ratios = {round(np.log(l.activation), 6) for l in points}
  budgets = sorted({l.budget for l in points})
  if len(ratios) + 1 < LEAST_RATIOS or len(budgets) < LEAST_BUDGETS:
    raise fit.FitRefused(
      f'{len(ratios) + 1} activation ratios ({dense} one of them) and '
      f'{len(budgets)} budgets; it needs {LEAST_RATIOS} or more of each.'
    )
  pinned = _pinned(points, ratios)
  every = _fitted(points, pinned)
  seen = [l for l in points if l.budget < budgets[-1]]
  ahead = _fitted(seen, pinned) if len(seen) > every.free else None
  held = np.array([l.budget == budgets[-1] for l in points])
  held &= ahead is not None
  predicted, intervals = _predictions(every, points)
  if ahead is not None:
    unseen, unseen_intervals = _predictions(ahead, points)
    predicted = np.where(held, unseen, predicted)
    both = zip(held, unseen_intervals, intervals, strict=True)
    intervals = [later if h else now for h, later, now in both]
  return LeverageLaw(every, ahead, points, predicted, tuple(intervals), held)


def _pinned(points, ratios) -> dict[str, float]:
  """What the sweep cannot tell: saturations, and granularity if all alike."""
  ranges = forms.efficiency_leverage.ranges
  pinned = {'A_max': ranges['A_max'][1]}
  if len(ratios) < SATURATION_RATIOS:
    pinned['A_start'] = ranges['A_start'][0]
  grains = {l.granularity for l in points if l.granularity > 0}
  if len(grains) < 3:
    pinned['gamma'] = 0.0
  if len(grains) < 2:
    pinned['beta'] = 0.0
  return pinned


def covariates(points: Sequence[Leverage]) -> forms.Covariates:
  """A, G and C of leverages, each `[points]`; G is 1 where it is not told."""
  grains = np.array([l.granularity for l in points])
  return {
    'A': np.array([l.activation for l in points]),
    'G': np.where(grains > 0, grains, 1.0),
    'C': np.array([l.flops for l in points]),
  }


def _fitted(points, pinned) -> fit.Fit:
  covs = covariates(points)
  values = np.array([l.value for l in points])
  found = fit.varpro(forms.efficiency_leverage, covs, values, pinned=pinned)
  if any(l.draws is None for l in points):
    return found
  table = np.stack([l.draws for l in points], 1)
  table = table[(np.isfinite(table) & (table > 0)).all(1)]
  rows = [fit.refit(found, covs, row) for row in table]
  return dataclasses.replace(found, draws=np.array(rows) if rows else None)


def _predictions(found, points):
  """Leverages by a fit, `[points]`, and the interval of each."""
  covs = covariates(points)
  rows = [found.form(theta, covs) for theta in found.drawn()]
  drawn = np.array(rows).T if rows else [None] * len(points)
  return found.predict(covs), [resample.interval(d) for d in drawn]
