"""IsoFLOP parabolas: loss against size at one budget, and where it is least."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from moejax.scaling import resample
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

  def curve(self, sizes: np.ndarray) -> np.ndarray:
    """Fitted loss at `sizes`."""
    return _design(sizes, self.centre) @ np.array(self.coefficients)


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
    found = np.linalg.lstsq(_design(sizes, centre), losses, rcond=None)[0]
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
    losses = _design(sizes, centre) @ np.array(coefficients)
  best = int(np.argmin(losses))
  return float(sizes[best]), float(losses[best]), None


def _design(sizes, centre) -> np.ndarray:
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


def residual_pool(fitted: Sequence[Parabola]) -> np.ndarray | None:
  """Relative residuals of all parabolas, scaled to the variance of the noise.

  Each is divided by sqrt(1 - leverage), since four points and three
  coefficients leave one degree of freedom; pooling assumes that relative noise
  is alike across variants and budgets. None if no parabola has freedom left.
  """
  pool = []
  for one in fitted:
    if one.coefficients is None or len(one.runs) <= 3:
      continue
    design = _design(one.sizes, one.centre)
    spare = 1 - np.einsum('np,pn->n', design, np.linalg.pinv(design))
    relative = one.losses / one.curve(one.sizes) - 1
    keep = spare > 1e-6
    pool.append(relative[keep] / np.sqrt(spare[keep]))
  if not pool:
    return None
  pooled = np.concatenate(pool)
  # No centring at zero mean is lost: each parabola has an intercept.
  return pooled - pooled.mean()


def with_draws(
  fitted: Sequence[Parabola], *, draws: int = 1000, seed: int = 0
) -> list[Parabola]:
  """The parabolas with residual-bootstrap draws of their vertices.

  Losses are redrawn around the fitted curves from `residual_pool`; sizes and
  budgets stay. Each draw has one scale of the noise, itself uncertain for few
  residuals (`resample.noise_scales`). Without any residual the parabolas come
  back unchanged.
  """
  pool = residual_pool(fitted)
  if pool is None or draws == 0:
    return list(fitted)
  rng = np.random.default_rng(seed)
  freedom = sum(
    max(0, len(p.runs) - 3) for p in fitted if p.coefficients is not None
  )
  scales = resample.noise_scales(rng, freedom, draws)
  out = []
  for one in fitted:
    picks = 1 + scales * rng.choice(pool, (draws, len(one.runs)))
    out.append(dataclasses.replace(one, draws=_redraw(one, picks)))
  return out


def _redraw(one: Parabola, noise: np.ndarray) -> Vertex:
  """Vertices of `fitted * noise`, `noise` being `[draws, runs]`."""
  sizes = one.sizes
  if one.coefficients is None:
    losses = (one.losses * noise).min(1)
    sizes = np.full(len(noise), one.size)
    return Vertex(sizes, losses, np.zeros(len(noise), bool))
  design = _design(sizes, one.centre)
  redrawn = one.curve(sizes) * noise
  c = redrawn @ np.linalg.pinv(design).T
  curved = c[:, 2] > LEAST_CURVATURE * one.losses.mean()
  steep = np.where(curved, c[:, 2], 1.0)
  place = np.where(curved, one.centre - c[:, 1] / (2 * steep), np.inf)
  low, high = np.log10(sizes[0]), np.log10(sizes[-1])
  interior = curved & (place >= low) & (place <= high)
  sampled = c @ design.T
  best = sampled.argmin(1)
  bottom = c[:, 0] - c[:, 1] ** 2 / (4 * steep)
  size = np.where(interior, 10 ** np.where(interior, place, 0), sizes[best])
  return Vertex(size, np.where(interior, bottom, sampled.min(1)), interior)
