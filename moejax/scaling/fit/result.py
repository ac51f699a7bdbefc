"""What a fit gives, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np

from moejax.scaling import forms


class FitRefused(ValueError):
  """A fit that the data cannot support; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted law.

  Attributes:
    theta: parameter -> value, pinned ones included.
    pinned: the parameters that were not fitted, with their values.
    objective: what was minimised, at the solution.
    residuals: log(measured / predicted), `[runs]`.
    restarts, agreeing: optimisations run, and how many of them ended within
      1e-6 (relative) of the best objective.
    warnings: what not to trust about this fit.
    delta: where the Huber loss turns linear; None for variable projection.
    draws: bootstrap refits, `[draws, parameters]` in the order of
      `form.parameters`, or None.
  """

  form: forms.PowerSum
  theta: dict[str, float]
  pinned: dict[str, float]
  objective: float
  residuals: np.ndarray
  restarts: int
  agreeing: int
  warnings: tuple[str, ...]
  delta: float | None = None
  draws: np.ndarray | None = None

  @property
  def method(self) -> str:
    """How it was fitted, in words."""
    if self.delta is not None:
      return f'Huber {self.delta:g}'
    if len(self.form.linear) > 1:
      return 'variable projection'
    return 'line in logs'

  @property
  def free(self) -> int:
    """Number of parameters that were fitted."""
    return len(self.form.parameters) - len(self.pinned)

  def predict(self, covariates: forms.Covariates) -> np.ndarray:
    """Predicted values, `[runs]`."""
    return self.form(self.theta, covariates)

  def drawn(self) -> list[dict[str, float]]:
    """The bootstrap refits as mappings like `theta`."""
    names = self.form.parameters
    rows = [] if self.draws is None else self.draws
    return [dict(zip(names, row, strict=True)) for row in rows]


def held(form: forms.PowerSum, pinned) -> dict[str, float]:
  """What is not fitted: the caller's pins and what the law itself fixes."""
  pinned = dict(pinned or {})
  unknown = set(pinned) - set(form.parameters)
  if unknown:
    raise ValueError(
      f'pinned={sorted(unknown)} must be among the parameters '
      f'{", ".join(form.parameters)} of {form.equation}.'
    )
  return dict(form.fixed) | pinned


def checked(form: forms.PowerSum, values, pinned) -> np.ndarray:
  """The measured values as an array.

  Raises:
    FitRefused: for values not above 0, or fewer of them than parameters.
  """
  values = np.asarray(values, float)
  if not np.all(np.isfinite(values)) or not np.all(values > 0):
    raise FitRefused('losses must be finite and above 0; drop the other runs.')
  free = len(form.parameters) - len(pinned)
  if len(values) < free:
    raise FitRefused(
      f'{len(values)} runs cannot fit the {free} free parameters of '
      f'{form.equation}; add sizes or budgets.'
    )
  return values


def agreeing(finals, best: float, floor: float) -> int:
  """How many objectives equal the best one."""
  return int(sum(f <= best + 1e-6 * abs(best) + floor for f in finals))


def warnings(
  form, theta, pinned, values, agreed: int, restarts: int
) -> tuple[str, ...]:
  """What not to trust about a fit."""
  out = []
  for name in set(form.exponents + form.shape) - set(pinned):
    low, high = form.range_of(name)
    edge = 0.01 * min(high - low, abs(high), abs(low) or high)
    if not low + edge < theta[name] < high - edge:
      out.append(f'{name} at the edge of its range')
  for name in set(form.linear) - set(pinned):
    if name == form.asymptote and theta[name] < 1e-3 * np.min(values):
      out.append(f'{name} is 0: the data show no asymptote')
    elif theta[name] == 0:
      out.append(f'{name} is 0: its term is unused')
  if len(values) == len(form.parameters) - len(pinned):
    out.append('as many parameters as runs: no residual is left')
  if restarts > 1 and agreed < max(2, restarts // 20):
    out.append(f'only {agreed} of {restarts} restarts agree')
  return tuple(sorted(out))
