"""Noise of losses: between the seeds of a cell, and of cells about a law."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from moejax.scaling.runs import Run

# A point that keeps less of its noise than this lies on the curve anyway.
LEAST_SPARE = 1e-6


@dataclasses.dataclass(frozen=True)
class SeedNoise:
  """Standard deviation of log loss between seeds, pooled over cells."""

  deviation: float
  cells: int
  freedom: int


def cells(runs: Iterable[Run]) -> np.ndarray:
  """Which cell each run belongs to, counted from 0, `[runs]`.

  Runs of a cell share variant, budget, size and tokens: they differ in seed.
  """
  places: dict[tuple, int] = {}
  return np.array([places.setdefault(r.cell, len(places)) for r in runs], int)


def means(values: np.ndarray, of: np.ndarray) -> np.ndarray:
  """Means of `values` over the runs of each cell, `[..., cells]`."""
  share = np.eye(of.max() + 1)[:, of]
  return values @ (share / share.sum(1, keepdims=True)).T


def seed_noise(runs: Sequence[Run]) -> SeedNoise | None:
  """Noise between runs that differ only in seed; None without repeats."""
  runs = list(runs)
  found = estimate(np.log([r.loss for r in runs]), cells(runs), 0.0)
  if found is None:
    return None
  repeated = np.bincount(cells(runs)) > 1
  deviation = math.sqrt(float(np.mean(found.own**2)))
  return SeedNoise(deviation, int(repeated.sum()), found.own_freedom)


@dataclasses.dataclass(frozen=True)
class Noise:
  """Relative errors about a law, in two parts that are drawn apart.

  Attributes:
    shared: errors that all seeds of a cell have in common: the law's own
      misfit, and with one seed its noise too. `[cells]`
    own: errors of runs about their cell, empty without repeats. `[runs]`
    shared_freedom, own_freedom: degrees of freedom that each was seen with.
  """

  shared: np.ndarray
  own: np.ndarray
  shared_freedom: int
  own_freedom: int

  def drawn(
    self, rng: np.random.Generator, of: np.ndarray, draws: int
  ) -> np.ndarray:
    """Errors of runs whose cells are `of`, `[draws, runs]`.

    Each part has one scale per draw (`scales`); a cell's part is the same for
    all its seeds, so that more seeds do not hide what a law cannot follow.
    """
    out = np.zeros((draws, len(of)))
    if len(self.shared):
      wide = scales(rng, self.shared_freedom, draws)
      out += wide * rng.choice(self.shared, (draws, of.max() + 1))[:, of]
    if len(self.own):
      wide = scales(rng, self.own_freedom, draws)
      out += wide * rng.choice(self.own, (draws, len(of)))
    return out


def scales(rng: np.random.Generator, freedom: int, draws: int) -> np.ndarray:
  """Scales of the noise relative to its estimate, `[draws, 1]`.

  sqrt(freedom / chi-square): an estimate from few degrees of freedom may be far
  too small, and intervals widen as Student's t does beside the normal.
  """
  return np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))


def estimate(
  errors: np.ndarray, of: np.ndarray, spare: np.ndarray | float
) -> Noise | None:
  """The noise behind the residuals of a fit.

  Both pools are scaled to the variance of the noise itself. What seeds leave
  in the mean of a cell, own variance / seeds, is taken off the shared part.

  Args:
    errors: relative residuals, `[runs]`.
    of: the cell of each run.
    spare: share of the noise of a cell's mean that its residual keeps, 1 minus
      the leverage of the fit, `[cells]`; 0 where the fit passes through.

  Returns:
    None if nothing is left to see noise by.
  """
  count = np.bincount(of)
  middle = means(errors, of)
  repeated = (count > 1)[of]
  about = (errors - middle[of])[repeated]
  own = about * np.sqrt(count / np.maximum(count - 1, 1))[of][repeated]
  spare = np.broadcast_to(spare, middle.shape)
  keep = spare > LEAST_SPARE
  shared = middle[keep] / np.sqrt(spare[keep])
  if len(shared):
    # No centring at zero mean is lost: a law has a constant or a factor.
    shared = shared - shared.mean()
    total = np.mean(shared**2)
    seeds = np.mean(own**2) * np.mean(1 / count[keep]) if len(own) else 0.0
    shared = shared * math.sqrt(max(0.0, 1 - seeds / max(total, 1e-300)))
  if not len(shared) and not len(own):
    return None
  return Noise(
    shared,
    own,
    max(1, round(float(spare[keep].sum()))),
    int((count - 1).sum()),
  )
