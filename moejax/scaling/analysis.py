"""A sweep's runs turned into laws: everything that the report states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from moejax.scaling import (
  fit,
  forms,
  heldout,
  isoflop,
  leverage,
  resample,
  runs,
)


@dataclasses.dataclass(frozen=True)
class Analysis:
  """What was fitted, and for each absent piece the reason.

  Attributes:
    surfaces: variant -> fits of `forms.chinchilla`, one per method.
    absent: (what, why) for fits that were refused.
  """

  runs: list[runs.Run]
  excluded: list[runs.Excluded]
  size: str
  variants: list[str]
  dense: str | None
  noise: runs.SeedNoise | None
  parabolas: list[isoflop.Parabola]
  costs: dict[str, forms.Cost]
  surfaces: dict[str, list[fit.Fit]]
  frontiers: dict[str, leverage.Law]
  allocations: dict[str, dict[str, leverage.Law]]
  leverages: list[leverage.Leverage]
  held_out: list[heldout.HeldOut]
  absent: list[tuple[str, str]]
  draws: int
  seed: int

  @property
  def budgets(self) -> list[float]:
    """Nominal budgets, ascending."""
    return sorted({r.budget for r in self.runs})

  def of(self, variant: str) -> list[isoflop.Parabola]:
    """The parabolas of one variant, budgets ascending."""
    return [p for p in self.parabolas if p.variant == variant]


def covariates(of: Iterable[runs.Run]) -> dict[str, np.ndarray]:
  """N, D and C of runs, each `[runs]`."""
  of = list(of)
  return {
    'N': np.array([r.size for r in of]),
    'D': np.array([r.tokens for r in of]),
    'C': np.array([r.flops for r in of]),
  }


def analyse(
  results: Iterable[Mapping[str, Any]],
  *,
  size: str = 'params_active',
  draws: int = 300,
  huber_starts: int | None = 96,
  seed: int = 0,
) -> Analysis:
  """Fits everything that the rows support.

  Args:
    results: rows, one per run; see `runs.parse`.
    size: the parameter count used as N.
    draws: bootstrap refits of each law; 0 for no intervals.
    huber_starts: restarts of the Huber fit; None for the full grid.

  Raises:
    ValueError: if no row can be used.
  """
  good, excluded = runs.parse(results, size)
  names = runs.variants(good)
  fitted = isoflop.with_draws(isoflop.parabolas(good), draws=draws, seed=seed)
  absent: list[tuple[str, str]] = []
  out = Analysis(
    good,
    excluded,
    size,
    names,
    runs.dense_variant(good),
    runs.seed_noise(good),
    fitted,
    {v: heldout.cost_law([r for r in good if r.variant == v]) for v in names},
    {},
    {},
    {},
    [],
    [],
    absent,
    draws,
    seed,
  )
  for variant in names:
    _fit_variant(out, variant, huber_starts)
  _add_leverage(out)
  out.held_out.extend(heldout.hold_out(out.parabolas, names, absent, draws))
  return out


def _fit_variant(out: Analysis, variant: str, huber_starts) -> None:
  mine = [r for r in out.runs if r.variant == variant]
  vertices = out.of(variant)
  covs, loss = covariates(mine), np.array([r.loss for r in mine])
  with _noting(out, f'parametric fit of {variant}'):
    heldout.require_budgets(mine)
    methods = (
      fit.varpro(forms.chinchilla, covs, loss),
      fit.huber(
        forms.chinchilla, covs, loss, starts=huber_starts, seed=out.seed
      ),
    )
    out.surfaces[variant] = [
      resample.bootstrap(m, covs, draws=out.draws, seed=out.seed)
      for m in methods
    ]
  with _noting(out, f'compute frontier of {variant}'):
    out.frontiers[variant] = leverage.frontier(vertices, draws=out.draws)
  with _noting(out, f'allocation of {variant}'):
    out.allocations[variant] = {
      what: leverage.allocation(vertices, what, draws=out.draws)
      for what in ('size', 'tokens')
    }


def _add_leverage(out: Analysis) -> None:
  if out.dense is None:
    out.absent.append(
      (
        'efficiency leverage',
        'no variant is dense (labels.activation_ratio 1 or labels.variant '
        "'dense'), so there is no compute to compare with",
      )
    )
  elif out.dense not in out.frontiers:
    out.absent.append(
      (
        'efficiency leverage',
        f'{out.dense} has no compute frontier: it needs runs at 2 budgets',
      )
    )
  elif not out.frontiers[out.dense].falls:
    out.absent.append(
      (
        'efficiency leverage',
        f'the least loss of {out.dense} does not fall with compute, so its '
        'compute at a given loss is undefined; use budgets further apart',
      )
    )
  else:
    law = out.frontiers[out.dense]
    out.leverages.extend(leverage.leverages(out.parabolas, out.dense, law))


class _noting:
  """Turns a refused fit into a line of `absent`."""

  def __init__(self, out: Analysis, what: str):
    self.out, self.what = out, what

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, fit.FitRefused):
      self.out.absent.append((self.what, str(error)))
      return True
    return False
