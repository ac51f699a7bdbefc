"""Least squares by variable projection."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.optimize

from moejax.scaling import forms
from moejax.scaling.fit.result import Fit, agreeing, checked, held, warnings
from moejax.scaling.fit.space import Space


def varpro(
  form: forms.PowerSum,
  covariates: forms.Covariates,
  loss: np.ndarray,
  *,
  weights: np.ndarray | None = None,
  pinned: Mapping[str, float] | None = None,
  seed: int = 0,
) -> Fit:
  """Least squares in relative error by variable projection.

  For given exponents the coefficients solve a non-negative least-squares
  problem exactly; only the exponents are searched. A law of one term is a line
  in logs: there the errors are those of logs, the exponents are solved for as
  well, and only parameters inside derived covariates are searched.

  Args:
    weights: of squared errors, `[runs]`; None is 1 each.
    pinned: parameters held at a value, such as `{'E': 0}`.
    seed: of the starts.

  Raises:
    FitRefused: for fewer runs than free parameters, or losses not above 0.
  """
  problem = _problem(form, covariates, loss, weights, pinned)
  ends = [problem.search(start) for start in problem.space.starts(seed)]
  point, objective = min(ends, key=lambda end: end[1])
  theta = problem.theta(point)
  agreed = agreeing([end[1] for end in ends], objective, problem.floor)
  return Fit(
    form,
    theta,
    problem.pinned,
    objective,
    np.log(problem.values / form(theta, covariates)),
    len(ends),
    agreed,
    warnings(form, theta, problem.pinned, problem.values, agreed, len(ends)),
  )


def refit(fit: Fit, covariates: forms.Covariates, loss: np.ndarray) -> dict:
  """The parameters fitted to other losses, searching from the solution."""
  problem = _problem(fit.form, covariates, loss, None, fit.pinned)
  # Far finer than the spread of the draws.
  return problem.theta(problem.search(problem.space.point(fit.theta), 1e-6)[0])


def _problem(form, covariates, loss, weights, pinned):
  pinned = held(form, pinned)
  values = checked(form, loss, pinned)
  root = np.ones(len(values)) if weights is None else np.sqrt(weights)
  kind, searched = _Sum, form.exponents + form.shape
  if len(form.linear) == 1:
    kind, searched = _Line, form.shape
  space = Space.of(form, [n for n in searched if n not in pinned])
  # Without shape parameters the design never changes.
  design = None if form.shape else form.design(covariates)
  return kind(form, covariates, values, root, pinned, space, design)


@dataclasses.dataclass(frozen=True)
class _Projected:
  """The linear problem that is left once `space` is decided.

  Attributes:
    values: what was measured, `[runs]`.
    root: square roots of the weights, `[runs]`.
    space: the parameters that are searched.
  """

  form: forms.PowerSum
  covariates: forms.Covariates
  values: np.ndarray
  root: np.ndarray
  pinned: dict[str, float]
  space: Space
  design: np.ndarray | None

  @property
  def floor(self) -> float:
    """Squared errors below this are rounding."""
    return len(self.values) * 1e-20

  def solve(self, known) -> tuple[dict[str, float], np.ndarray]:
    """The other parameters, and the weighted errors, `[runs]`."""
    raise NotImplementedError

  def features(self, known) -> np.ndarray:
    if self.design is not None:
      return self.design
    return self.form.design(self.covariates, known)

  def search(self, start, tolerance=1e-10) -> tuple[np.ndarray, float]:
    """The point where a search from `start` ends, and the sum of squares."""

    def errors(point):
      return self.solve(self.pinned | self.space.theta(point))[1]

    if len(start) == 0:
      return start, float(np.sum(errors(start) ** 2))
    end = scipy.optimize.least_squares(
      errors,
      start,
      bounds=(self.space.low, self.space.high),
      jac='3-point',
      x_scale=0.1,
      ftol=max(tolerance**1.5, 1e-15),
      xtol=tolerance,
      # An exact solution, or a start where no searched term has a share.
      gtol=1e-15,
      max_nfev=400,
    )
    return end.x, float(2 * end.cost)

  def theta(self, point) -> dict[str, float]:
    known = self.pinned | self.space.theta(point)
    found = known | self.solve(known)[0]
    return {name: float(found[name]) for name in self.form.parameters}


class _Sum(_Projected):
  """Several terms: coefficients by non-negative least squares."""

  def solve(self, known):
    exponents = np.array([known[p] for p in self.form.exponents])
    log_basis = self.features(known) @ exponents
    scale = self.root / self.values
    columns, names, offsets, target = [], [], [], self.root.copy()
    for k, name in enumerate(self.form.linear):
      # A unit maximum keeps N^-2 and 1 in one matrix.
      offset = log_basis[:, k].max()
      column = np.exp(log_basis[:, k] - offset) * scale
      if name in self.pinned:
        target = target - self.pinned[name] * np.exp(offset) * column
      else:
        columns.append(column)
        names.append(name)
        offsets.append(offset)
    if not columns:
      return {}, target
    matrix = np.stack(columns, 1)
    found, _ = scipy.optimize.nnls(matrix, target)
    linear = found * np.exp(-np.array(offsets))
    return dict(zip(names, linear, strict=True)), target - matrix @ found


class _Line(_Projected):
  """One term: its coefficient and exponents by least squares in logs."""

  def solve(self, known):
    (name,) = self.form.linear
    features = self.features(known)[:, 0]
    matrix = np.concatenate([np.ones((len(features), 1)), features], 1)
    names = (name, *self.form.exponents)
    given = {n: known[n] for n in names if n in self.pinned}
    if name in given:
      given[name] = np.log(given[name])
    target = np.log(self.values)
    for n, value in given.items():
      target = target - value * matrix[:, names.index(n)]
    free = [i for i, n in enumerate(names) if n not in given]
    scaled = matrix[:, free] * self.root[:, None]
    found = np.linalg.lstsq(scaled, target * self.root, rcond=None)[0]
    theta = dict(zip([names[i] for i in free], found, strict=True))
    if name in theta:
      theta[name] = np.exp(theta[name])
    return theta, target * self.root - scaled @ found
