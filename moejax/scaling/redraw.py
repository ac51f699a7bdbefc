"""Bootstrap draws of IsoFLOP vertices, from noise pooled over parabolas."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moejax.scaling import isoflop, noise
from moejax.scaling.isoflop import Parabola, Vertex


def pooled(fitted: Sequence[Parabola]) -> noise.Noise | None:
  """The noise about all parabolas, relative to the loss.

  Pooling assumes that relative noise is alike across variants and budgets,
  since four sizes and three coefficients leave one degree of freedom. None if
  no parabola has freedom left and no cell a second seed.
  """
  if not fitted:
    return None
  errors = [p.losses / _expected(p) - 1 for p in fitted]
  spare = [_spare(p) for p in fitted]
  return noise.estimate(
    np.concatenate(errors), _cells(fitted), np.concatenate(spare)
  )


def with_draws(
  fitted: Sequence[Parabola], *, draws: int = 1000, seed: int = 0
) -> list[Parabola]:
  """The parabolas with residual-bootstrap draws of their vertices.

  Losses are redrawn around the fitted curves from the `pooled` noise: one error
  per cell and one per seed; sizes and budgets stay. Without any noise to see
  the parabolas come back unchanged.
  """
  found = pooled(fitted)
  if found is None or draws == 0:
    return list(fitted)
  rng = np.random.default_rng(seed)
  factors = 1 + found.drawn(rng, _cells(fitted), draws)
  ends = np.cumsum([len(p.runs) for p in fitted])[:-1]
  return [
    dataclasses.replace(one, draws=_redraw(one, part))
    for one, part in zip(fitted, np.split(factors, ends, 1), strict=True)
  ]


def _cells(fitted) -> np.ndarray:
  return noise.cells(r for p in fitted for r in p.runs)


def _expected(one: Parabola) -> np.ndarray:
  if one.coefficients is not None:
    return one.curve(one.sizes)
  of = noise.cells(one.runs)
  return noise.means(one.losses, of)[of]


def _spare(one: Parabola) -> np.ndarray:
  """Of each cell, what the parabola leaves of its noise."""
  of = noise.cells(one.runs)
  if one.coefficients is None:
    return np.zeros(of.max() + 1)
  design = isoflop.design(one.sizes, one.centre)
  held = np.einsum('np,pn->n', design, np.linalg.pinv(design))
  return 1 - np.bincount(of, held)


def _redraw(one: Parabola, factors: np.ndarray) -> Vertex:
  """Vertices of the expected losses times `factors`, `[draws, runs]`."""
  sizes = one.sizes
  redrawn = _expected(one) * factors
  if one.coefficients is None:
    losses = noise.means(redrawn, noise.cells(one.runs)).min(1)
    still = np.full(len(factors), one.size)
    return Vertex(still, losses, np.zeros(len(factors), bool))
  design = isoflop.design(sizes, one.centre)
  c = redrawn @ np.linalg.pinv(design).T
  curved = c[:, 2] > isoflop.LEAST_CURVATURE * one.losses.mean()
  steep = np.where(curved, c[:, 2], 1.0)
  place = np.where(curved, one.centre - c[:, 1] / (2 * steep), np.inf)
  low, high = np.log10(sizes[0]), np.log10(sizes[-1])
  interior = curved & (place >= low) & (place <= high)
  sampled = c @ design.T
  best = sampled.argmin(1)
  bottom = c[:, 0] - c[:, 1] ** 2 / (4 * steep)
  size = np.where(interior, 10 ** np.where(interior, place, 0), sizes[best])
  return Vertex(size, np.where(interior, bottom, sampled.min(1)), interior)
