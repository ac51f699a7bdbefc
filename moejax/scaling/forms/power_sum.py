"""The shape that all laws share: a sum of products of powers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Theta = Mapping[str, float]
Covariates = Mapping[str, np.ndarray]
# A covariate, or several: the product of their logs.
Factor = str | tuple[str, ...]

# Exponents of losses in N, D and C lie well inside; a fit that ends at an edge
# says so.
EXPONENT_RANGE = (0.005, 3.0)


class Published(NamedTuple):
  """Coefficients as printed, where they stand, and one value they imply."""

  theta: dict[str, float]
  source: str
  covariates: dict[str, float]
  value: float


class Derived(NamedTuple):
  """A covariate that is computed from others.

  Attributes:
    inputs: the covariates that it needs.
    shape: parameters of the function, all positive, fitted like the others.
    function: `(covariates, **shape) -> values`, positive.
  """

  inputs: tuple[str, ...]
  shape: tuple[str, ...]
  function: Callable[..., np.ndarray]


@dataclasses.dataclass(frozen=True)
class PowerSum:
  """A value (mostly a loss) as a sum of products of powers.

  value = sum over k of theta[k] * exp(sum over p of theta[p] * feature_kp),
  where a feature is a sum of signed logs of covariates, or of products of logs.

  Attributes:
    equation: the law in plain text, for reports.
    terms: coefficient -> {exponent -> {factor -> sign}}; an empty inner
      mapping is a constant. `{'A': {'alpha': {'N': -1}}}` is A N^-alpha, and
      `{'gamma': {('N', 'E'): 1}}` is N^(gamma ln E).
    asymptote: the coefficient that is the value at infinite scale, or None.
    published: coefficients of papers by label.
    derived: covariates computed from others, by name.
    ranges: exponents and shape parameters -> where a fit looks for them; a
      range above 0 is searched in logs. None given is `EXPONENT_RANGE`.
    fixed: coefficients that the law itself gives a value.
  """

  equation: str
  terms: Mapping[str, Mapping[str, Mapping[Factor, float]]]
  asymptote: str | None = None
  published: Mapping[str, Published] = dataclasses.field(default_factory=dict)
  derived: Mapping[str, Derived] = dataclasses.field(default_factory=dict)
  ranges: Mapping[str, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )
  fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def linear(self) -> tuple[str, ...]:
    """Names of the coefficients that multiply a term."""
    return tuple(self.terms)

  @property
  def exponents(self) -> tuple[str, ...]:
    """Names of the exponents, in order of first use."""
    return tuple(dict.fromkeys(p for t in self.terms.values() for p in t))

  @property
  def shape(self) -> tuple[str, ...]:
    """Names of the parameters inside derived covariates."""
    found = (p for d in self.derived.values() for p in d.shape)
    return tuple(dict.fromkeys(found))

  @property
  def parameters(self) -> tuple[str, ...]:
    """All names: coefficients, then exponents, then shape parameters."""
    return self.linear + self.exponents + self.shape

  @property
  def covariates(self) -> tuple[str, ...]:
    """Names of the covariates that are asked for, in order of first use."""
    names = []
    for name in self._factors():
      inner = self.derived[name].inputs if name in self.derived else (name,)
      names += inner
    return tuple(dict.fromkeys(names))

  def _factors(self):
    """Names of all covariates in the terms, derived ones too."""
    factors = (z for t in self.terms.values() for f in t.values() for z in f)
    for factor in factors:
      yield from (factor,) if isinstance(factor, str) else factor

  def range_of(self, name: str) -> tuple[float, float]:
    """Where a fit looks for an exponent or a shape parameter."""
    return self.ranges.get(name, EXPONENT_RANGE)

  def design(
    self, covariates: Covariates, shape: Theta | None = None
  ) -> np.ndarray:
    """Features of term k and exponent p, `[runs, terms, exponents]`.

    Raises:
      ValueError: if a covariate is missing or not positive.
    """
    given = {z: self._column(covariates, z) for z in self.covariates}
    logs = {z: np.log(v) for z, v in given.items()}
    for name, (_, parameters, function) in self.derived.items():
      own = {p: shape[p] for p in parameters}
      logs[name] = np.log(function(given, **own))
    count = len(next(iter(logs.values())))
    out = np.zeros((count, len(self.linear), len(self.exponents)))
    for k, term in enumerate(self.terms.values()):
      for name, factors in term.items():
        for factor, sign in factors.items():
          names = (factor,) if isinstance(factor, str) else factor
          feature = math.prod(logs[z] for z in names)
          out[:, k, self.exponents.index(name)] += sign * feature
    return out

  def _column(self, covariates, name):
    if name not in covariates:
      raise ValueError(
        f'covariates lack {name!r}, which {self.equation} needs; found '
        f'{", ".join(sorted(covariates)) or "none"}.'
      )
    values = np.atleast_1d(np.asarray(covariates[name], float))
    if not np.all(values > 0):
      raise ValueError(
        f'covariate {name}={values[~(values > 0)][0]} must be positive; '
        'drop that run.'
      )
    return values

  def __call__(self, theta: Theta, covariates: Covariates) -> np.ndarray:
    """The law's values, `[runs]`; losses are nats per token."""
    exponents = np.array([theta[p] for p in self.exponents])
    linear = np.array([theta[k] for k in self.linear])
    return np.exp(self.design(covariates, theta) @ exponents) @ linear
