"""A sweep's runs turned into laws: everything that the report states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from moejax.scaling import (
  ahead,
  fit,
  forms,
  heldout,
  isoflop,
  leverage,
  leverage_law,
  noise,
  rates,
  redraw,
  resample,
  runs,
  trends,
)


@dataclasses.dataclass
class Analysis:
  """What was fitted, and for each absent piece the reason.

  Attributes:
    runs: those that laws are fitted to; searches of learning rates are not.
    noise: between the seeds of a cell, pooled; None without repeats.
    surfaces: variant -> fits of `forms.chinchilla`, one per method.
    maps: loss over learning rate and batch, from runs whose role is rates.
    absent: (what, why) for fits that were refused.
  """

  runs: list[runs.Run]
  excluded: list[runs.Excluded]
  size: str
  variants: list[str]
  dense: str | None
  noise: noise.SeedNoise | None
  parabolas: list[isoflop.Parabola]
  costs: dict[str, forms.Cost]
  maps: list[rates.Map]
  draws: int
  seed: int
  surfaces: dict[str, list[fit.Fit]] = dataclasses.field(default_factory=dict)
  frontiers: dict[str, leverage.Law] = dataclasses.field(default_factory=dict)
  allocations: dict[str, dict[str, leverage.Law]] = dataclasses.field(
    default_factory=dict
  )
  leverages: list[leverage.Leverage] = dataclasses.field(default_factory=list)
  trends: list[trends.Trend] = dataclasses.field(default_factory=list)
  leverage_law: leverage_law.LeverageLaw | None = None
  held_out: list[heldout.HeldOut] = dataclasses.field(default_factory=list)
  choices: list[ahead.Choice] = dataclasses.field(default_factory=list)
  absent: list[tuple[str, str]] = dataclasses.field(default_factory=list)

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
  kept = [r for r in good if r.role != rates.ROLE]
  if not kept:
    raise ValueError(
      f'all {len(good)} usable rows have labels.role {rates.ROLE!r}: no law is '
      'fitted to a search of learning rates; add the runs of the sweep.'
    )
  maps, unplaced = rates.maps([r for r in good if r.role == rates.ROLE])
  names = runs.variants(kept)
  out = Analysis(
    kept,
    [*excluded, *unplaced],
    size,
    names,
    runs.dense_variant(kept),
    noise.seed_noise(kept),
    redraw.with_draws(isoflop.parabolas(kept), draws=draws, seed=seed),
    {v: heldout.cost_law([r for r in kept if r.variant == v]) for v in names},
    maps,
    draws,
    seed,
  )
  for variant in names:
    _fit_variant(out, variant, huber_starts)
  _add_leverage(out)
  out.held_out = heldout.hold_out(out.parabolas, names, out.absent, draws)
  out.choices = ahead.look_ahead([_known(out, v) for v in names])
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
    # A stream of its own: variants err independently.
    stream = [out.seed, 1 + out.variants.index(variant)]
    out.surfaces[variant] = [
      resample.bootstrap(
        m, covs, draws=out.draws, seed=stream, cells=noise.cells(mine)
      )
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
  why = _no_leverage(out)
  if why is not None:
    out.absent.append(('efficiency leverage', why))
    return
  law = out.frontiers[out.dense]
  out.leverages = leverage.leverages(out.parabolas, out.dense, law)
  out.trends = trends.trends(out.leverages, out.dense)
  if any(l.activation > 0 for l in out.leverages):
    with _noting(out, 'joint law of leverage'):
      out.leverage_law = leverage_law.leverage_law(out.leverages, out.dense)


def _no_leverage(out: Analysis) -> str | None:
  if out.dense is None:
    return (
      'no variant is dense (labels.activation_ratio 1 or labels.variant '
      "'dense'), so there is no compute to compare with"
    )
  if out.dense not in out.frontiers:
    return f'{out.dense} has no compute frontier: it needs runs at 2 budgets'
  if not out.frontiers[out.dense].falls:
    return (
      f'the least loss of {out.dense} does not fall with compute, so its '
      'compute at a given loss is undefined; use budgets further apart'
    )
  return None


def _known(out: Analysis, variant: str) -> ahead.Known:
  surfaces = out.surfaces.get(variant)
  return ahead.Known(
    variant,
    [p.budget for p in out.of(variant)],
    out.costs[variant],
    surfaces[0] if surfaces else None,
    out.frontiers.get(variant),
    out.allocations.get(variant, {}),
    next((h for h in out.held_out if h.variant == variant), None),
    *(rates.law(out.maps, variant, axis) for axis in rates.AXES),
  )


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
