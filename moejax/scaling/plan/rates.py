"""Learning rate and batch of each cell, by laws of its training FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from moejax.nearest import hint
from moejax.scaling import forms, runs
from moejax.scaling import rates as inner

# Field of `Rates` -> the axis of an inner sweep.
AXES = {'learning_rate': 'rate', 'batch_tokens': 'batch'}


@dataclasses.dataclass(frozen=True)
class Rates:
  """Peak learning rate k C^-a and tokens of a batch k C^a.

  An inner sweep, where one is given, decides for each variant that it ran (for
  all, if it ran a single one). At several budgets its own laws count; at one,
  its best replaces the coefficient k, and the exponent carries it on.

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
    for name in AXES:
      self._theta(name)

  def __call__(
    self, variant: str, flops: float
  ) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Learning rate, tokens of a batch (None: the recipe's), and notes."""
    maps = [] if self.measured is None else self._maps(variant)
    values, notes = [], []
    for name, axis in AXES.items():
      value = self._published(name, flops)
      if maps:
        found = inner.law(maps, maps[0].variant, axis)
        if found is None:
          notes += [f'inner sweep: {m.edges[axis]}' for m in maps]
        elif found.fit is not None or value is None:
          value = found(flops)
        else:
          value *= found.values[0] / self._published(name, found.budgets[0])
      values.append(value)
    return *values, tuple(notes)

  def _published(self, name, flops) -> float | None:
    theta = self._theta(name)
    if theta is None:
      return None
    return float(getattr(forms, name)(theta, {'C': np.array([flops])})[0])

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

  def _maps(self, variant) -> list[inner.Map]:
    maps = measured(self.measured)
    found = sorted({m.variant for m in maps})
    if variant not in found and len(found) > 1:
      raise ValueError(
        f'{self.measured} has no inner sweep of {variant!r}; it has '
        f'{", ".join(found)}: run one for it, or a single one for all.'
      )
    wanted = variant if variant in found else found[0]
    return [m for m in maps if m.variant == wanted]


def measured(path: str) -> list[inner.Map]:
  """The inner sweeps in a table of results.

  Raises:
    ValueError: no such file, or no run of such a sweep.
  """
  try:
    rows = runs.load(path)
  except OSError as error:
    raise ValueError(
      f'{path}: {error.strerror}; run the inner sweep first, or leave '
      'rates.measured out.'
    ) from error
  good, _ = runs.parse(rows)
  maps, _ = inner.maps([run for run in good if run.role == inner.ROLE])
  if not maps:
    raise ValueError(
      f"{path} has no finished run whose labels.role is '{inner.ROLE}'; give "
      'the results of an inner sweep (scaling.plan.RateGrid).'
    )
  return maps
