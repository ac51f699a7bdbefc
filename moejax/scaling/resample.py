"""Bootstrap refits of a law, and the intervals read off them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moejax.scaling import forms, noise
from moejax.scaling.fit import Fit, refit


@dataclasses.dataclass(frozen=True)
class Interval:
  """Bootstrap standard error and percentile intervals of one number."""

  error: float
  low80: float
  high80: float
  low95: float
  high95: float


def interval(draws: np.ndarray | None) -> Interval | None:
  """Percentile intervals of finite draws, `[draws]`; None for under 20."""
  if draws is None:
    return None
  draws = np.asarray(draws, float)
  finite = draws[np.isfinite(draws)]
  if len(finite) < 20:
    return None
  low95, low80, high80, high95 = np.percentile(finite, [2.5, 10, 90, 97.5])
  ends = map(float, (low80, high80, low95, high95))
  return Interval(float(finite.std()), *ends)


def bootstrap(
  fit: Fit,
  covariates: forms.Covariates,
  *,
  draws: int = 300,
  seed: int | Sequence[int] = 0,
  cells: np.ndarray | None = None,
) -> Fit:
  """The fit with residual-bootstrap refits added.

  Each draw multiplies the fitted losses by exp(error), errors being drawn with
  replacement from the residuals, centred and scaled to the variance of the
  noise, and refits from the solution. The design (sizes, budgets) stays fixed.
  Seeds of a cell share one error and have one each of their own (`noise`).
  A fit with as many parameters as cells and no repeats comes back without
  draws.

  Args:
    cells: the cell of each run, see `noise.cells`; None if none is repeated.
  """
  of = np.arange(len(fit.residuals)) if cells is None else cells
  count = int(of.max()) + 1
  spare = max(0.0, 1 - fit.free / count)
  found = noise.estimate(fit.residuals, of, spare)
  if found is None or draws == 0:
    return fit
  errors = found.drawn(np.random.default_rng(seed), of, draws)
  predicted = fit.predict(covariates)
  rows = [
    refit(fit, covariates, losses) for losses in predicted * np.exp(errors)
  ]
  return dataclasses.replace(fit, draws=np.array(rows))
