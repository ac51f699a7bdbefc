"""Learning rate and batch of each cell, by laws of its training FLOPs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from moejax.nearest import hint
from moejax.scaling import forms, runs

ROLE = 'rates'  # labels.role of the runs of an inner sweep


@dataclasses.dataclass(frozen=True)
class Rates:
  """Peak learning rate k C^-a and tokens of a batch k C^a.

  An inner sweep, where one is given, replaces the coefficient k of each law,
  for each variant that it ran (for the others, if it ran a single one); the
  exponents carry its best to the other budgets.

  Attributes:
    learning_rate: a label of `forms.learning_rate.published`, or {k, a}; None
      leaves the rate to the recipe.
    batch_tokens: likewise of `forms.batch_tokens`.
    measured: `results.csv` with runs whose labels.role is 'rates', or None.
  """

  learning_rate: str | Mapping[str, float] | None = None
  batch_tokens: str | Mapping[str, float] | None = None
  measured: str | None = None

  def __post_init__(self):
    for name in ('learning_rate', 'batch_tokens'):
      self._theta(name)

  def __call__(
    self, variant: str, flops: float
  ) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Learning rate, tokens of a batch (None: the recipe's), and notes."""
    best = None if self.measured is None else self._best(variant)
    out = []
    for name in ('learning_rate', 'batch_tokens'):
      theta = self._theta(name)
      if theta is None:
        # Without an exponent the best of the inner sweep is kept as it is.
        out.append(best and getattr(best, name))
        continue
      law = getattr(forms, name)
      value = law(theta, {'C': flops})[0]
      if best:
        value *= getattr(best, name) / law(theta, {'C': best.flops})[0]
      out.append(float(value))
    return *out, best.notes if best else ()

  def told(self) -> str:
    """What the rates rest on."""
    parts = []
    for name in ('learning_rate', 'batch_tokens'):
      given, law = getattr(self, name), getattr(forms, name)
      if isinstance(given, str):
        parts.append(f'{law.equation}: {law.published[given].source}')
      elif given is not None:
        parts.append(f'{law.equation}, k={given["k"]:g}, a={given["a"]:g}')
    if self.measured is not None:
      parts.append(f'through the inner sweep in {self.measured}')
    return '; '.join(parts) or "the recipe's"

  def _theta(self, name):
    given, published = getattr(self, name), getattr(forms, name).published
    if given is None:
      return None
    if isinstance(given, str):
      if given not in published:
        raise ValueError(
          f'{name}={given!r} is no published law{hint(given, published)}; '
          f'known: {", ".join(published)}, or give k and a.'
        )
      return published[given].theta
    if set(given) != {'k', 'a'} or not given['k'] > 0:
      raise ValueError(
        f'{name}={dict(given)} must be a label, or k (above 0) and a of '
        f'{getattr(forms, name).equation}.'
      )
    return given

  def _best(self, variant) -> Best:
    found = bests(self.measured)
    if variant in found:
      return found[variant]
    if len(found) == 1:
      return next(iter(found.values()))
    raise ValueError(
      f'{self.measured} has no inner sweep of {variant!r}; it has '
      f'{", ".join(found)}: run one for it, or a single one for all.'
    )


@dataclasses.dataclass(frozen=True)
class Best:
  """The best learning rate and batch at one budget."""

  flops: float
  learning_rate: float
  batch_tokens: float
  notes: tuple[str, ...]


def bests(path: str) -> dict[str, Best]:
  """Variant -> the best of its inner sweep.

  Raises:
    ValueError: no such file, no such rows, or several budgets.
  """
  try:
    rows = [runs.nested(row) for row in runs.load(path)]
  except OSError as error:
    raise ValueError(
      f'{path}: {error.strerror}; run the inner sweep first, or leave '
      'rates.measured out.'
    ) from error
  points: dict[str, list] = {}
  for row in rows:
    labels = row.get('labels') or {}
    if labels.get('role') == ROLE:
      values = _point(row, labels)
      if values is not None:
        points.setdefault(str(labels.get('variant')), []).append(values)
  if not points:
    raise ValueError(
      f"{path} has no finished run whose labels.role is '{ROLE}'; give the "
      'results of an inner sweep (scaling.plan.RateGrid).'
    )
  return {v: _least(np.array(p), v, path) for v, p in points.items()}


def _point(row, labels):
  names = ('budget_flops', 'peak_lr', 'batch_tokens')
  try:
    values = [float(labels[name]) for name in names] + [float(row['loss'])]
  except (KeyError, TypeError, ValueError):
    return None  # it failed
  return values if all(v > 0 and math.isfinite(v) for v in values) else None


def _least(points, variant, path) -> Best:
  """The vertex of a quadratic in both logs where there is one inside."""
  budgets = np.unique(points[:, 0])
  if len(budgets) > 1:
    raise ValueError(
      f'{path} has inner sweeps of {variant!r} at {len(budgets)} budgets, '
      f'{budgets[0]:g} to {budgets[-1]:g}; keep one.'
    )
  x, loss = np.log(points[:, 1:3]), points[:, 3]
  place = x[loss.argmin()]
  notes = []
  for axis, name in enumerate(('learning rate', 'batch')):
    low, high = x[:, axis].min(), x[:, axis].max()
    if low < high and place[axis] in (low, high):
      edge = 'smallest' if place[axis] == low else 'largest'
      notes.append(f'the best {name} of the inner sweep is the {edge} tried')
  vertex = _vertex(x, loss)
  if vertex is not None and not notes:
    place = vertex
  rate, batch = np.exp(place)
  return Best(float(budgets[0]), float(rate), float(batch), tuple(notes))


def _vertex(x, loss):
  """Least of a quadratic through `[points, 2]`, if it lies inside them."""
  u = x - x.mean(0)
  design = np.stack(
    [u[:, 0] ** 0, u[:, 0], u[:, 1], u[:, 0] ** 2, u[:, 1] ** 2, u.prod(1)], 1
  )
  if len(loss) < 6 or np.linalg.matrix_rank(design) < 6:
    return None
  c = np.linalg.lstsq(design, loss, rcond=None)[0]
  curvature = np.array([[2 * c[3], c[5]], [c[5], 2 * c[4]]])
  if np.linalg.eigvalsh(curvature)[0] <= 0:
    return None
  place = x.mean(0) - np.linalg.solve(curvature, c[1:3])
  inside = (place >= x.min(0)).all() and (place <= x.max(0)).all()
  return place if inside else None
