"""Bootstrap refits of a law, and the intervals read off them."""

from __future__ import annotations

import dataclasses

import numpy as np

from moejax.scaling import forms
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
  seed: int = 0,
) -> Fit:
  """The fit with residual-bootstrap refits added.

  Each draw multiplies the fitted losses by exp(residual), residuals being
  drawn with replacement after centring and inflation by sqrt(n / (n - free)),
  and refits from the solution. The design (sizes, budgets) stays fixed. Each
  draw has one scale of the noise (`noise_scales`). A fit with as many
  parameters as runs comes back without draws.
  """
  rng = np.random.default_rng(seed)
  predicted = fit.predict(covariates)
  pool = centred(fit.residuals, fit.free)
  if pool is None or draws == 0:
    return fit
  scales = noise_scales(rng, len(pool) - fit.free, draws)
  picks = scales * rng.choice(pool, (draws, len(predicted)))
  rows = [
    refit(fit, covariates, losses) for losses in predicted * np.exp(picks)
  ]
  return dataclasses.replace(fit, draws=np.array(rows))


def noise_scales(
  rng: np.random.Generator, freedom: int, draws: int
) -> np.ndarray:
  """Scales of the noise relative to its estimate, `[draws, 1]`.

  sqrt(freedom / chi-square): an estimate from few degrees of freedom may be far
  too small, and intervals widen as Student's t does beside the normal.
  """
  return np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))


def centred(residuals: np.ndarray, free: int) -> np.ndarray | None:
  """Residuals made to have the variance of the noise; None without freedom."""
  count = len(residuals)
  if count <= free:
    return None
  return (residuals - residuals.mean()) * np.sqrt(count / (count - free))
