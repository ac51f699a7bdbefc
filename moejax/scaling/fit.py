"""Fits of `forms.PowerSum` laws, with restarts counted and intervals drawn."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import scipy.optimize

from moejax.scaling import forms

# Exponents of losses in N, D and C lie well inside; a fit that ends at an edge
# says so.
EXPONENT_RANGE = (0.005, 3.0)
VARPRO_STARTS = (0.05, 0.15, 0.4, 1.0)
MAX_STEPS = 3000
# Source: arXiv 2203.15556, appendix D.3: 4500 starts for chinchilla.
HUBER_EXPONENT_STARTS = (0.0, 0.5, 1.0, 1.5, 2.0)
HUBER_LOG_LINEAR_STARTS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
HUBER_LOG_ASYMPTOTE_STARTS = (-1.0, -0.5, 0.0, 0.5, 1.0)


class FitRefused(ValueError):
  """A fit that the data cannot support; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted law.

  Attributes:
    theta: parameter -> value, pinned ones included.
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
    if len(self.form.linear) == 1:
      return 'line in logs'
    if self.delta is None:
      return 'variable projection'
    return f'Huber {self.delta:g}'

  @property
  def free(self) -> int:
    """Number of parameters that were fitted."""
    return len(self.form.parameters) - len(self.pinned)

  def predict(self, covariates: forms.Covariates) -> np.ndarray:
    """Predicted loss, `[runs]`."""
    return self.form(self.theta, covariates)

  def drawn(self) -> list[dict[str, float]]:
    """The bootstrap refits as mappings like `theta`."""
    names = self.form.parameters
    rows = [] if self.draws is None else self.draws
    return [dict(zip(names, row, strict=True)) for row in rows]


def varpro(
  form: forms.PowerSum,
  covariates: forms.Covariates,
  loss: np.ndarray,
  *,
  weights: np.ndarray | None = None,
  pinned: Mapping[str, float] | None = None,
) -> Fit:
  """Least squares in relative error by variable projection.

  For given exponents the coefficients solve a non-negative least-squares
  problem exactly; only the exponents are searched.

  Args:
    weights: of squared relative errors, `[runs]`; None is 1 each.
    pinned: coefficients (not exponents) held at a value, such as `{'E': 0}`.

  Raises:
    FitRefused: for fewer runs than free parameters, or losses not above 0.
  """
  problem = _Projected.of(form, covariates, loss, weights, pinned)
  lattice = itertools.product(VARPRO_STARTS, repeat=len(form.exponents))
  ends = [problem.search(np.array(start)) for start in lattice]
  best = min(ends, key=lambda end: end[1])
  theta, objective = problem.theta(best[0]), best[1]
  agreeing = _agreeing([end[1] for end in ends], objective, problem.floor)
  return Fit(
    form,
    theta,
    problem.pinned,
    objective,
    np.log(loss / form(theta, covariates)),
    len(ends),
    agreeing,
    _warnings(form, theta, problem.pinned, loss, agreeing, len(ends)),
  )


def line(
  form: forms.PowerSum,
  covariates: forms.Covariates,
  values: np.ndarray,
  *,
  weights: np.ndarray | None = None,
) -> Fit:
  """Least squares in logs of a law of one term, which is a straight line there.

  Args:
    weights: of squared log errors, `[runs]`; None is 1 each.

  Raises:
    FitRefused: for fewer values than parameters, or values not above 0.
  """
  values = np.asarray(values, float)
  if len(form.linear) != 1:
    raise ValueError(f'{form.equation} has several terms; use varpro.')
  _check(form, values, {})
  slopes = form.design(covariates)[:, 0]
  design = np.concatenate([np.ones((len(values), 1)), slopes], 1)
  root = np.ones(len(values)) if weights is None else np.sqrt(weights)
  found = np.linalg.lstsq(
    design * root[:, None], np.log(values) * root, rcond=None
  )[0]
  theta = _exponentiated(form, found)
  residuals = np.log(values / form(theta, covariates))
  objective = float(np.sum((root * residuals) ** 2))
  warnings = _warnings(form, theta, {}, values, 1, 1)
  return Fit(form, theta, {}, objective, residuals, 1, 1, warnings)


@dataclasses.dataclass(frozen=True)
class _Projected:
  """The non-negative least-squares problem left once exponents are given."""

  form: forms.PowerSum
  design: np.ndarray
  target: np.ndarray
  scale: np.ndarray
  pinned: dict[str, float]

  @classmethod
  def of(cls, form, covariates, loss, weights, pinned):
    loss = np.asarray(loss, float)
    pinned = dict(pinned or {})
    unknown = set(pinned) - set(form.linear)
    if unknown:
      raise ValueError(
        f'pinned={sorted(unknown)} must be among the coefficients '
        f'{", ".join(form.linear)} of {form.equation}.'
      )
    _check(form, loss, pinned)
    scale = 1 / loss
    if weights is not None:
      scale = scale * np.sqrt(np.asarray(weights, float))
    design = form.design(covariates)
    return cls(form, design, loss, scale, pinned)

  @property
  def floor(self) -> float:
    """Squared relative errors below this are rounding."""
    return len(self.target) * 1e-20

  def solve(self, exponents) -> tuple[np.ndarray, float]:
    """Coefficients of the free terms, and the sum of squares."""
    log_basis = self.design @ exponents
    columns, target, offsets = [], self.target * self.scale, []
    for k, name in enumerate(self.form.linear):
      # A unit maximum keeps N^-2 and 1 in one matrix.
      offset = log_basis[:, k].max()
      column = np.exp(log_basis[:, k] - offset) * self.scale
      if name in self.pinned:
        target = target - self.pinned[name] * np.exp(offset) * column
      else:
        columns.append(column)
        offsets.append(offset)
    found, norm = scipy.optimize.nnls(np.stack(columns, 1), target)
    return found * np.exp(-np.array(offsets)), norm**2

  def search(self, start, tolerance=1e-7) -> tuple[np.ndarray, float]:
    """Exponents that end a simplex search from `start`, and the objective.

    `tolerance` is of log exponents, its square of the objective.
    """
    low, high = np.log(EXPONENT_RANGE)

    def objective(log_exponents):
      outside = np.clip(log_exponents, low, high) - log_exponents
      inside = self.solve(np.exp(log_exponents + outside))[1]
      return inside * (1 + outside @ outside) + outside @ outside

    end = scipy.optimize.minimize(
      objective,
      np.log(start),
      method='Nelder-Mead',
      options=dict(xatol=tolerance, fatol=tolerance**2, maxiter=600),
    )
    exponents = np.exp(np.clip(end.x, low, high))
    return exponents, self.solve(exponents)[1]

  def theta(self, exponents) -> dict[str, float]:
    found = iter(self.solve(exponents)[0])
    linear = {
      k: self.pinned[k] if k in self.pinned else float(next(found))
      for k in self.form.linear
    }
    named = zip(self.form.exponents, map(float, exponents), strict=True)
    return linear | dict(named)


def huber(
  form: forms.PowerSum,
  covariates: forms.Covariates,
  loss: np.ndarray,
  *,
  delta: float = 1e-3,
  starts: int | None = 96,
  seed: int = 0,
) -> Fit:
  """Sum of Huber losses of log errors, by L-BFGS from many starts.

  Coefficients are searched as logarithms, as in log-sum-exp. The sum (not the
  mean) keeps the objective far above the stopping tolerance; a mean ends early.

  Source: arXiv 2203.15556, equation 12; arXiv 2404.10102 for the sum.
  Differs: `starts` are drawn from the 4500 of the source; None takes all.

  Raises:
    FitRefused: for fewer runs than parameters, or losses not above 0.
  """
  loss = np.asarray(loss, float)
  _check(form, loss, {})
  design = form.design(covariates)
  grid = _huber_grid(form)
  if starts is not None and starts < len(grid):
    order = np.random.default_rng(seed).permutation(len(grid))
    grid = grid[np.sort(order[:starts])]
  ends = [_lbfgs(design, np.log(loss), delta, start) for start in grid]
  finals = [end.fun for end in ends]
  best = int(np.argmin(finals))
  unmoved = [
    name
    for name, x, start in zip(
      form.parameters, ends[best].x, grid[best], strict=True
    )
    if abs(x - start) <= 1e-9 * (1 + abs(start))
  ]
  polished = _lbfgs(design, np.log(loss), delta, ends[best].x)
  theta = _exponentiated(form, polished.x)
  agreeing = _agreeing(finals, polished.fun, 1e-12)
  warnings = _warnings(form, theta, {}, loss, agreeing, len(grid))
  if unmoved:
    warnings += (f'still at the start: {", ".join(unmoved)}',)
  drop = ends[best].fun - polished.fun
  if drop > 1e-3 * abs(polished.fun) or polished.nit >= MAX_STEPS:
    warnings += ('stopped early: a continued search still improves',)
  return Fit(
    form,
    theta,
    {},
    float(polished.fun),
    np.log(loss / form(theta, covariates)),
    len(grid),
    agreeing,
    warnings,
    delta,
  )


def _huber_grid(form) -> np.ndarray:
  axes = [
    HUBER_LOG_ASYMPTOTE_STARTS
    if k == form.asymptote
    else HUBER_LOG_LINEAR_STARTS
    for k in form.linear
  ]
  axes += [HUBER_EXPONENT_STARTS] * len(form.exponents)
  return np.array(list(itertools.product(*axes)))


def huber_objective(x, design, log_loss, delta):
  """Sum of Huber losses and its gradient at `x = [log linear, exponents]`."""
  terms = design.shape[1]
  logs = design @ x[terms:] + x[:terms]
  top = logs.max(1, keepdims=True)
  shares = np.exp(logs - top)
  total = shares.sum(1, keepdims=True)
  error = (top + np.log(total))[:, 0] - log_loss
  shares = shares / total
  slope = np.clip(error, -delta, delta)
  value = np.sum(slope * (error - 0.5 * slope))
  gradient = np.concatenate(
    [slope @ shares, np.einsum('n,nk,nkp->p', slope, shares, design)]
  )
  return value, gradient


def _lbfgs(design, log_loss, delta, start):
  return scipy.optimize.minimize(
    huber_objective,
    start,
    args=(design, log_loss, delta),
    jac=True,
    method='L-BFGS-B',
    options=dict(
      ftol=1e-15, gtol=1e-10, maxiter=MAX_STEPS, maxfun=3 * MAX_STEPS
    ),
  )


def _exponentiated(form, x) -> dict[str, float]:
  terms = len(form.linear)
  values = [*np.exp(x[:terms]), *x[terms:]]
  return dict(zip(form.parameters, map(float, values), strict=True))


def refit(fit: Fit, covariates: forms.Covariates, loss: np.ndarray) -> list:
  """Parameters refitted to other losses, searching from the solution."""
  if len(fit.form.linear) == 1:
    theta = line(fit.form, covariates, loss).theta
  elif fit.delta is None:
    problem = _Projected.of(fit.form, covariates, loss, None, fit.pinned)
    start = np.array([fit.theta[p] for p in fit.form.exponents])
    # Far finer than the spread of the draws.
    theta = problem.theta(problem.search(start, tolerance=1e-5)[0])
  else:
    linear = [np.log(max(fit.theta[k], 1e-300)) for k in fit.form.linear]
    start = np.array(linear + [fit.theta[p] for p in fit.form.exponents])
    end = _lbfgs(fit.form.design(covariates), np.log(loss), fit.delta, start)
    theta = _exponentiated(fit.form, end.x)
  return [theta[name] for name in fit.form.parameters]


def _check(form, loss, pinned):
  if not np.all(np.isfinite(loss)) or not np.all(loss > 0):
    raise FitRefused('losses must be finite and above 0; drop the other runs.')
  free = len(form.parameters) - len(pinned)
  if len(loss) < free:
    raise FitRefused(
      f'{len(loss)} runs cannot fit the {free} free parameters of '
      f'{form.equation}; add sizes or budgets.'
    )


def _agreeing(finals, best, floor) -> int:
  return int(sum(f <= best + 1e-6 * abs(best) + floor for f in finals))


def _warnings(form, theta, pinned, loss, agreeing, restarts) -> tuple[str, ...]:
  low, high = EXPONENT_RANGE
  out = []
  for name in form.exponents:
    if not low * 1.01 < theta[name] < high * 0.99:
      out.append(f'{name} at the edge of its range')
  for name in set(form.linear) - set(pinned):
    if name == form.asymptote and theta[name] < 1e-3 * np.min(loss):
      out.append(f'{name} is 0: the data show no asymptote')
    elif theta[name] == 0:
      out.append(f'{name} is 0: its term is unused')
  if len(loss) == len(form.parameters) - len(pinned):
    out.append('as many parameters as runs: no residual is left')
  if restarts > 1 and agreeing < max(2, restarts // 20):
    out.append(f'only {agreeing} of {restarts} restarts agree')
  return tuple(out)
