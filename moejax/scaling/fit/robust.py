"""The sum of Huber losses of log errors, from many starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.optimize

from moejax.scaling import forms
from moejax.scaling.fit.result import Fit, agreeing, checked, held, warnings
from moejax.scaling.fit.space import Space

MAX_STEPS = 3000
# Source: arXiv 2203.15556, appendix D.3: 4500 starts for chinchilla.
EXPONENT_STARTS = (0.0, 0.5, 1.0, 1.5, 2.0)
LOG_LINEAR_STARTS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
LOG_ASYMPTOTE_STARTS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def huber(
  form: forms.PowerSum,
  covariates: forms.Covariates,
  loss: np.ndarray,
  *,
  delta: float = 1e-3,
  weights: np.ndarray | None = None,
  pinned: Mapping[str, float] | None = None,
  starts: int | None = 96,
  seed: int = 0,
) -> Fit:
  """Sum of Huber losses of log errors, by L-BFGS from many starts.

  Coefficients are searched as logarithms, as in log-sum-exp. The sum (not the
  mean) keeps the objective far above the stopping tolerance; a mean ends early.

  Source: arXiv 2203.15556, equation 12; arXiv 2404.10102 for the sum.
  Differs: `starts` are drawn from the grid of the source (4500 for its law);
  None takes all of it. Parameters with a range of their own start inside it.

  Args:
    delta: log error where the loss turns from square to linear.
    weights: of the runs' losses, `[runs]`; None is 1 each.
    pinned: parameters held at a value, such as `{'E': 0}`.
    starts: number of optimisations, None for the whole grid.
    seed: of the starts.

  Raises:
    FitRefused: for fewer runs than free parameters, or losses not above 0.
  """
  pinned = held(form, pinned)
  values = checked(form, loss, pinned)
  problem = _Problem.of(form, covariates, values, delta, weights, pinned)
  grid = problem.starts(starts, seed)
  ends = [problem.search(start) for start in grid]
  finals = [end.fun for end in ends]
  best = int(np.argmin(finals))
  polished = problem.search(ends[best].x)
  theta = problem.theta(polished.x)
  agreed = agreeing(finals, polished.fun, 1e-12)
  notes = warnings(form, theta, pinned, values, agreed, len(grid))
  notes += problem.unmoved(ends[best].x, grid[best])
  drop = ends[best].fun - polished.fun
  if drop > 1e-3 * abs(polished.fun) or polished.nit >= MAX_STEPS:
    notes += ('stopped early: a continued search still improves',)
  return Fit(
    form,
    theta,
    pinned,
    float(polished.fun),
    np.log(values / form(theta, covariates)),
    len(grid),
    agreed,
    notes,
    delta,
  )


def refit(fit: Fit, covariates: forms.Covariates, loss: np.ndarray) -> dict:
  """The parameters fitted to other losses, searching from the solution."""
  problem = _Problem.of(
    fit.form, covariates, np.asarray(loss, float), fit.delta, None, fit.pinned
  )
  return problem.theta(problem.search(problem.point(fit.theta)).x)


@dataclasses.dataclass(frozen=True)
class _Problem:
  """The objective in x = [log coefficients, exponents, shape in `space`]."""

  form: forms.PowerSum
  covariates: forms.Covariates
  log_values: np.ndarray
  delta: float
  weights: np.ndarray
  pinned: dict[str, float]
  space: Space
  fixed_design: np.ndarray | None

  @classmethod
  def of(cls, form, covariates, values, delta, weights, pinned):
    weights = np.ones(len(values)) if weights is None else np.asarray(weights)
    space = Space.of(form, [n for n in form.shape if n not in pinned])
    # Without shape parameters the design never changes.
    design = None if form.shape else form.design(covariates)
    return cls(
      form, covariates, np.log(values), delta, weights, pinned, space, design
    )

  def design(self, theta) -> np.ndarray:
    if self.fixed_design is not None:
      return self.fixed_design
    return self.form.design(self.covariates, theta)

  @property
  def linear(self) -> list[str]:
    return [n for n in self.form.linear if n not in self.pinned]

  @property
  def exponents(self) -> list[str]:
    return [n for n in self.form.exponents if n not in self.pinned]

  @property
  def names(self) -> list[str]:
    return [*self.linear, *self.exponents, *self.space.names]

  def theta(self, x) -> dict[str, float]:
    found = dict(self.pinned)
    cut, end = len(self.linear), len(self.linear) + len(self.exponents)
    found |= zip(self.linear, map(float, np.exp(x[:cut])), strict=True)
    found |= zip(self.exponents, map(float, x[cut:end]), strict=True)
    found |= self.space.theta(x[end:])
    return {name: found[name] for name in self.form.parameters}

  def point(self, theta) -> np.ndarray:
    linear = [np.log(max(theta[n], 1e-300)) for n in self.linear]
    exponents = [theta[n] for n in self.exponents]
    return np.array([*linear, *exponents, *self.space.point(theta)])

  def starts(self, count, seed) -> np.ndarray:
    """Points of the grid, drawn without repetition, `[starts, names]`."""
    axes = [self._axis(n) for n in (*self.linear, *self.exponents)]
    shape = [len(a) for a in axes]
    whole = int(np.prod(shape)) if shape else 1
    rng = np.random.default_rng(seed)
    if count is None or count >= whole:
      picks = np.arange(whole)
    else:
      picks = np.sort(rng.choice(whole, count, replace=False))
    if not axes:
      return self.space.starts(seed)
    places = np.unravel_index(picks, shape)
    columns = [np.array(a)[i] for a, i in zip(axes, places, strict=True)]
    low, high = self.space.low, self.space.high
    inner = rng.uniform(low, high, (len(picks), len(low)))
    return np.concatenate([np.stack(columns, 1), inner], 1)

  def _axis(self, name):
    if name == self.form.asymptote:
      return LOG_ASYMPTOTE_STARTS
    if name in self.linear:
      return LOG_LINEAR_STARTS
    if name in self.form.ranges:
      return tuple(np.linspace(*self.form.range_of(name), 5)[1:-1])
    return EXPONENT_STARTS

  def parts(self, x) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The design, the logs of the coefficients, the exponents."""
    at = dict(zip(self.names, x, strict=True))
    with np.errstate(divide='ignore'):  # a coefficient pinned at 0
      held = {
        n: np.log(self.pinned[n]) for n in self.form.linear if n in self.pinned
      }
    at = self.pinned | at | held
    shape = self.pinned | self.space.theta(x[len(x) - len(self.space.names) :])
    offset = np.array([at[n] for n in self.form.linear])
    powers = np.array([at[n] for n in self.form.exponents])
    return self.design(shape), offset, powers

  def objective(self, x) -> tuple[float, np.ndarray]:
    """Sum of Huber losses at x, and its gradient."""
    design, offset, powers = self.parts(x)
    logs = design @ powers + offset
    top = logs.max(1, keepdims=True)
    shares = np.exp(logs - top)
    total = shares.sum(1, keepdims=True)
    error = (top + np.log(total))[:, 0] - self.log_values
    shares = shares / total
    slope = np.clip(error, -self.delta, self.delta)
    value = np.sum(self.weights * slope * (error - 0.5 * slope))
    slope = self.weights * slope
    by_linear = dict(zip(self.form.linear, slope @ shares, strict=True))
    along = np.einsum('n,nk,nkp->p', slope, shares, design)
    by_exponent = dict(zip(self.form.exponents, along, strict=True))
    gradient = [by_linear[n] for n in self.linear]
    gradient += [by_exponent[n] for n in self.exponents]
    for place in range(len(gradient), len(x)):
      moved = self._shifted(x, place) @ powers
      gradient.append(np.einsum('n,nk,nk->', slope, shares, moved))
    return float(value), np.array(gradient)

  def _shifted(self, x, place, step=1e-6):
    """The design's derivative by a shape parameter, by central differences."""
    low, high = x.copy(), x.copy()
    low[place] -= step
    high[place] += step
    return (self.parts(high)[0] - self.parts(low)[0]) / (2 * step)

  def search(self, start):
    free = [(None, None)] * (len(self.linear) + len(self.exponents))
    shaped = list(zip(self.space.low, self.space.high, strict=True))
    return scipy.optimize.minimize(
      self.objective,
      start,
      jac=True,
      method='L-BFGS-B',
      bounds=free + shaped if shaped else None,
      options=dict(
        ftol=1e-15, gtol=1e-10, maxiter=MAX_STEPS, maxfun=3 * MAX_STEPS
      ),
    )

  def unmoved(self, x, start) -> tuple[str, ...]:
    """A warning that names the parameters that a search left alone."""
    still = [
      name
      for name, a, b in zip(self.names, x, start, strict=True)
      if abs(a - b) <= 1e-9 * (1 + abs(b))
    ]
    return (f'still at the start: {", ".join(still)}',) if still else ()
