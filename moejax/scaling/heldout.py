"""Prediction of the largest budget by fits that have not seen it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moejax.scaling import fit, forms, leverage, noise, resample
from moejax.scaling.isoflop import Parabola
from moejax.scaling.runs import Run


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Errors of predictions at the largest budget, as fractions of the loss.

  Attributes:
    trained_on: number of runs that the fit has seen.
    sizes, flops, predicted, actual: of the held-out cells, a cell's loss being
      the mean of its seeds, `[cells]`.
    seeds: runs of each cell, `[cells]`.
    drawn: bootstrap draws of `predicted`, `[draws, cells]`, or None.
    vertex: (predicted, actual) least loss by the parametric surface.
    vertex_interval: bootstrap interval of the predicted least loss.
    frontier: least loss that the compute frontier of the smaller budgets
      predicts, or None.
  """

  variant: str
  budget: float
  trained_on: int
  runs: tuple[Run, ...]
  sizes: np.ndarray
  flops: np.ndarray
  predicted: np.ndarray
  actual: np.ndarray
  seeds: np.ndarray
  drawn: np.ndarray | None
  vertex: tuple[float, float] | None
  vertex_interval: resample.Interval | None
  frontier: float | None
  warnings: tuple[str, ...]

  @property
  def errors(self) -> np.ndarray:
    """predicted / actual - 1, `[cells]`."""
    return self.predicted / self.actual - 1

  def noise(self, deviation: float) -> float:
    """Mean size of error that seeds alone would give a perfect law.

    Args:
      deviation: standard deviation of log loss between seeds.
    """
    # The mean of |x| is sqrt(2 / pi) deviations of a normal x.
    return float(np.mean(deviation / np.sqrt(self.seeds)) * np.sqrt(2 / np.pi))

  def covered(self, deviation: float) -> int | None:
    """Cells whose mean loss lies within the 95 % interval of its prediction.

    Args:
      deviation: standard deviation of log loss between seeds, which the means
        of the held-out cells have too.
    """
    if self.drawn is None:
      return None
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(self.drawn.shape) * deviation
    ahead = self.drawn * np.exp(spread / np.sqrt(self.seeds))
    low, high = np.percentile(ahead, [2.5, 97.5], axis=0)
    return int(np.sum((low <= self.actual) & (self.actual <= high)))


def cost_law(runs: Sequence[Run]) -> forms.Cost:
  """Training FLOPs per token as a power of size, fitted to runs."""
  return forms.Cost.through(
    [r.size for r in runs], [r.flops / r.tokens for r in runs]
  )


def require_budgets(runs: Sequence[Run]) -> None:
  """Refuses runs that cannot tell size from tokens.

  Raises:
    fit.FitRefused: for one budget or one size, or fewer cells than parameters.
  """
  budgets = {r.budget for r in runs}
  sizes = {r.size for r in runs}
  if len(budgets) < 2 or len(sizes) < 2:
    raise fit.FitRefused(
      f'{len(budgets)} budgets and {len(sizes)} sizes; a fit in size and '
      'tokens needs 2 or more of each.'
    )
  cells, free = len({r.cell for r in runs}), len(forms.chinchilla.parameters)
  if cells < free:
    raise fit.FitRefused(
      f'{cells} cells cannot fit the {free} parameters of '
      f'{forms.chinchilla.equation}, however many seeds each has; add sizes or '
      'budgets.'
    )


def hold_out(
  parabolas: Sequence[Parabola],
  variants: Sequence[str],
  absent: list[tuple[str, str]],
  draws: int,
) -> list[HeldOut]:
  """Fits each variant without its sweep's largest budget, and predicts it.

  Variants that cannot be predicted are added to `absent` with the reason.
  """
  largest = max(p.budget for p in parabolas)
  out = []
  for variant in variants:
    mine = [p for p in parabolas if p.variant == variant]
    seen = [p for p in mine if p.budget < largest]
    last = [p for p in mine if p.budget == largest]
    if not last:
      why = f'no run of it finished at the largest budget, {largest:.1e} FLOPs'
      absent.append((f'held-out error of {variant}', why))
      continue
    try:
      out.append(_predict(variant, seen, last[0], draws))
    except fit.FitRefused as refused:
      why = f'without the largest budget: {refused}'
      absent.append((f'held-out error of {variant}', why))
  return out


def _predict(variant, seen, last, draws) -> HeldOut:
  train = [r for p in seen for r in p.runs]
  require_budgets(train)
  known = {
    'N': np.array([r.size for r in train]),
    'D': np.array([r.tokens for r in train]),
  }
  loss = np.array([r.loss for r in train])
  surface = fit.varpro(forms.chinchilla, known, loss)
  surface = resample.bootstrap(
    surface, known, draws=draws, cells=noise.cells(train)
  )
  of = noise.cells(last.runs)
  columns = [(r.size, r.tokens, r.flops, r.loss) for r in last.runs]
  sizes, tokens, flops, actual = noise.means(np.array(columns).T, of)
  ahead = {'N': sizes, 'D': tokens}
  rows = [forms.chinchilla(theta, ahead) for theta in surface.drawn()]
  cost = cost_law(train)
  drawn = [least_loss(theta, last.flops, cost) for theta in surface.drawn()]
  least = least_loss(surface.theta, last.flops, cost)
  line = None
  if len(seen) >= 2:
    law = leverage.frontier(seen, draws=0)
    line = float(law(np.array([last.flops]))[0])
  return HeldOut(
    variant,
    last.budget,
    len(train),
    last.runs,
    sizes,
    flops,
    surface.predict(ahead),
    actual,
    np.bincount(of),
    np.array(rows) if rows else None,
    (least, last.loss) if np.isfinite(least) else None,
    resample.interval(np.array(drawn)) if drawn else None,
    line,
    surface.warnings,
  )


def least_loss(theta: forms.Theta, flops: float, cost: forms.Cost) -> float:
  """Least loss of a surface at training FLOPs; nan without an optimum."""
  found = forms.optimum_if_any(theta, np.array([flops]), cost)
  return float('nan') if found is None else float(found[2][0])
