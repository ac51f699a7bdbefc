"""IsoFLOP parabolas: loss against size at one budget, and where it is least."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from moejax.scaling import noise
from moejax.scaling.runs import Run

FLAT_FRAC = 1e-3
# Curvature per loss and squared decade below which a parabola is a line.
LEAST_CURVATURE = 1e-6
FEW = 'fewer than 4 sizes'
UNFITTED = 'fewer than 3 sizes: no parabola'
CONCAVE = 'curvature is not positive'
OUTSIDE = 'vertex outside the sampled sizes'


@dataclasses.dataclass(frozen=True)
class Vertex:
  """Bootstrap draws of one parabola, each `[draws]`."""

  size: np.ndarray  # clipped to the sampled range
  loss: np.ndarray
  interior: np.ndarray  # bool: a minimum inside the sampled range


@dataclasses.dataclass(frozen=True)
class Parabola:
  """Loss as a quadratic in log10 size, for one variant and budget.

  Attributes:
    flops: geometric mean of the training FLOPs that the runs spent.
    coefficients: loss = c0 + c1 x + c2 x^2 with x = log10(size) - centre, or
      None for fewer than three sizes.
    size, tokens, loss: at the vertex if it is usable, else at the sampled size
      whose fitted (or only measured) loss is least: an upper bound of the best.
    flat: sizes whose fitted loss is within 0.1 % of the vertex, or None.
    flags: why the vertex is not to be trusted; empty when it is.
  """

  variant: str
  budget: float
  activation: float
  flops: float
  runs: tuple[Run, ...]
  centre: float
  coefficients: tuple[float, float, float] | None
  size: float
  tokens: float
  loss: float
  flat: tuple[float, float] | None
  flags: tuple[str, ...]
  draws: Vertex | None = None

  @property
  def usable(self) -> bool:
    """Whether the vertex is a minimum inside the sampled sizes."""
    return not set(self.flags) & {UNFITTED, CONCAVE, OUTSIDE}

  @property
  def sizes(self) -> np.ndarray:
    """Sizes of the runs, `[runs]`."""
    return np.array([r.size for r in self.runs])

  @property
  def losses(self) -> np.ndarray:
    """Losses of the runs, `[runs]`."""
    return np.array([r.loss for r in self.runs])

  @property
  def cells(self) -> list[tuple[float, float, int]]:
    """Size, mean loss and number of seeds of each cell, sizes ascending."""
    of = noise.cells(self.runs)
    sizes, losses = noise.means(np.stack([self.sizes, self.losses]), of)
    return list(zip(sizes, losses, np.bincount(of).tolist(), strict=True))

  def tokens_at(self, sizes: np.ndarray) -> np.ndarray:
    """Tokens that the budget pays for at `sizes`, by its runs."""
    x = np.log(self.sizes)
    if np.ptp(x) == 0:
      return np.full(np.shape(sizes), self.tokens)
    slope = np.polyfit(x, np.log([r.tokens for r in self.runs]), 1)[0]
    return self.tokens * (sizes / self.size) ** slope

  def curve(self, sizes: np.ndarray) -> np.ndarray:
    """Fitted loss at `sizes`."""
    return design(sizes, self.centre) @ np.array(self.coefficients)


def parabolas(runs: Iterable[Run]) -> list[Parabola]:
  """One parabola for each variant and budget, budgets ascending."""
  groups: dict[tuple[str, float], list[Run]] = {}
  for run in runs:
    groups.setdefault((run.variant, run.budget), []).append(run)
  ordered = sorted(groups.items(), key=lambda item: item[0][1])
  return [parabola(group) for _, group in ordered]


def parabola(runs: Sequence[Run]) -> Parabola:
  """The parabola of runs that share a variant and a budget.

  Source: arXiv 2203.15556, section 3.2 (approach 2).
  """
  runs = tuple(sorted(runs, key=lambda r: r.size))
  sizes = np.array([r.size for r in runs])
  losses = np.array([r.loss for r in runs])
  distinct = len(np.unique(sizes))
  centre = float(np.log10(sizes).mean())
  coefficients, flags = None, []
  if distinct < 3:
    flags.append(UNFITTED)
  else:
    found = np.linalg.lstsq(design(sizes, centre), losses, rcond=None)[0]
    coefficients = tuple(map(float, found))
    if distinct < 4:
      flags.append(FEW)
    if coefficients[2] <= LEAST_CURVATURE * losses.mean():
      flags.append(CONCAVE)
    elif not sizes[0] <= _vertex(coefficients, centre) <= sizes[-1]:
      flags.append(OUTSIDE)
  size, loss, flat = _least(sizes, losses, centre, coefficients, flags)
  return Parabola(
    runs[0].variant,
    runs[0].budget,
    runs[0].activation,
    float(np.exp(np.mean(np.log([r.flops for r in runs])))),
    runs,
    centre,
    coefficients,
    size,
    _tokens_at(runs, size),
    loss,
    flat,
    tuple(flags),
  )


def _least(sizes, losses, centre, coefficients, flags):
  """Size, loss and flat band of the best model that the data support."""
  if not set(flags) & {UNFITTED, CONCAVE, OUTSIDE}:
    c0, c1, c2 = coefficients
    loss = c0 - c1**2 / (4 * c2)
    middle = np.log10(_vertex(coefficients, centre))
    half = np.sqrt(FLAT_FRAC * loss / c2)
    return (
      float(10**middle),
      float(loss),
      (float(10 ** (middle - half)), float(10 ** (middle + half))),
    )
  if coefficients is not None:
    losses = design(sizes, centre) @ np.array(coefficients)
  else:
    # The luckiest seed of a size says little of the size.
    losses = np.array([losses[sizes == size].mean() for size in sizes])
  best = int(np.argmin(losses))
  return float(sizes[best]), float(losses[best]), None


def design(sizes: np.ndarray, centre: float) -> np.ndarray:
  """Columns 1, x, x^2 of x = log10(size) - centre, `[sizes, 3]`."""
  x = np.log10(sizes) - centre
  return np.stack([np.ones_like(x), x, x * x], axis=-1)


def _vertex(coefficients, centre) -> float:
  _, c1, c2 = coefficients
  return 10 ** (centre - c1 / (2 * c2))


def _tokens_at(runs, size) -> float:
  # Within a budget, tokens are close to a power of size.
  x, y = np.log([r.size for r in runs]), np.log([r.tokens for r in runs])
  if np.ptp(x) == 0:
    return float(np.exp(y.mean()))
  slope, offset = np.polyfit(x, y, 1)
  return float(np.exp(offset + slope * np.log(size)))
