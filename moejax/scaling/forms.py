"""Laws of loss: functions `(theta, covariates) -> loss` with named parameters.

A law that is a sum of non-negative terms, each a product of powers of the
covariates, is written as data (`PowerSum`), so that one fitter serves them all.
Losses are nats per token, N parameters, D tokens, C training FLOPs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Theta = Mapping[str, float]
Covariates = Mapping[str, np.ndarray]


class Published(NamedTuple):
  """Coefficients as printed, where they stand, and one value they imply."""

  theta: dict[str, float]
  source: str
  covariates: dict[str, float]
  loss: float


@dataclasses.dataclass(frozen=True)
class PowerSum:
  """Loss as a sum over k of theta[k] * prod_p prod_z z^(s theta[p]).

  Attributes:
    equation: the law in plain text, for reports.
    terms: coefficient -> {exponent -> {covariate -> sign s}}; an empty inner
      mapping is a constant. `{'A': {'alpha': {'N': -1}}}` is A N^-alpha.
    asymptote: the coefficient that is the loss at infinite scale, or None.
    published: coefficients of papers by label.
  """

  equation: str
  terms: Mapping[str, Mapping[str, Mapping[str, float]]]
  asymptote: str | None = None
  published: Mapping[str, Published] = dataclasses.field(default_factory=dict)

  @property
  def linear(self) -> tuple[str, ...]:
    """Names of the coefficients that multiply a term."""
    return tuple(self.terms)

  @property
  def exponents(self) -> tuple[str, ...]:
    """Names of the exponents, in order of first use."""
    return tuple(dict.fromkeys(p for t in self.terms.values() for p in t))

  @property
  def parameters(self) -> tuple[str, ...]:
    """All names: coefficients, then exponents."""
    return self.linear + self.exponents

  @property
  def covariates(self) -> tuple[str, ...]:
    """Names of the covariates, in order of first use."""
    factors = [f for t in self.terms.values() for f in t.values()]
    return tuple(dict.fromkeys(z for f in factors for z in f))

  def design(self, covariates: Covariates) -> np.ndarray:
    """Log of term k per unit of exponent p, `[runs, terms, exponents]`.

    Raises:
      ValueError: if a covariate is missing or not positive.
    """
    logs = {z: self._log(covariates, z) for z in self.covariates}
    count = len(next(iter(logs.values())))
    out = np.zeros((count, len(self.linear), len(self.exponents)))
    for k, term in enumerate(self.terms.values()):
      for name, factors in term.items():
        for z, sign in factors.items():
          out[:, k, self.exponents.index(name)] += sign * logs[z]
    return out

  def _log(self, covariates, name):
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
    return np.log(values)

  def __call__(self, theta: Theta, covariates: Covariates) -> np.ndarray:
    """Predicted loss, `[runs]`, nats per token."""
    exponents = np.array([theta[p] for p in self.exponents])
    linear = np.array([theta[k] for k in self.linear])
    return np.exp(self.design(covariates) @ exponents) @ linear


# Source: arXiv 2203.15556, equation 10 (D.3); the refit is arXiv 2404.10102.
chinchilla = PowerSum(
  'L = E + A / N^alpha + B / D^beta',
  {'E': {}, 'A': {'alpha': {'N': -1}}, 'B': {'beta': {'D': -1}}},
  asymptote='E',
  published={
    'printed': Published(
      dict(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28),
      'arXiv 2203.15556, equation 10',
      dict(N=70e9, D=1.4e12),
      1.9366,
    ),
    'refit': Published(
      dict(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658),
      'arXiv 2404.10102, section 3 (sum of Huber losses, full convergence)',
      dict(N=70e9, D=1.4e12),
      1.9739,
    ),
  },
)

# The loss of the best model at each budget.
compute_frontier = PowerSum(
  'L = E + a C^-b', {'E': {}, 'a': {'b': {'C': -1}}}, asymptote='E'
)

# Source: arXiv 2403.08540, equation 4: M = D / N tokens per parameter.
over_training = PowerSum(
  'L = E + (a M^eta + b M^-eta) C^-eta',
  {
    'E': {},
    'a': {'eta': {'M': 1, 'C': -1}},
    'b': {'eta': {'M': -1, 'C': -1}},
  },
  asymptote='E',
  published={
    'C4': Published(
      dict(E=1.51, a=141.0, b=190.0, eta=0.121),
      'arXiv 2403.08540, equation 4 fitted on C4',
      dict(C=2.4e21, M=20.0),
      2.3766,
    )
  },
)

# N*(C) or D*(C): E is absent, so that the law is a straight line in logs.
allocation = PowerSum('X = k C^a', {'k': {'a': {'C': 1}}})


class Cost(NamedTuple):
  """Training FLOPs of a run as `factor * N^(1 + excess) * D`.

  6ND is `Cost(6, 0)`. Attention scores, heads and routers make small models
  dearer per parameter, so that `excess` is then negative.
  """

  factor: float = 6.0
  excess: float = 0.0

  def flops(self, size, tokens):
    """Training FLOPs of `size` parameters on `tokens` tokens."""
    return self.factor * size ** (1 + self.excess) * tokens

  def tokens(self, size, flops):
    """Tokens that `flops` pay for."""
    return flops / (self.factor * size ** (1 + self.excess))


SIX = Cost()


def optimum(
  theta: Theta, flops: np.ndarray, cost: Cost = SIX
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Size, tokens and loss that minimise `chinchilla` at given training FLOPs.

  With 6ND: N* = G (C/6)^(beta/(alpha+beta)), D* = (C/6)^(alpha/(alpha+beta))/G,
  G = (alpha A / (beta B))^(1/(alpha+beta)).

  Source: arXiv 2203.15556, equation 4.
  Differs: FLOPs may be any power law of N times D.

  Raises:
    ValueError: if there is no interior minimum.
  """
  alpha, beta = theta['alpha'], theta['beta'] * (1 + cost.excess)
  if min(alpha, beta, theta['A'], theta['B']) <= 0:
    raise ValueError(
      f'theta={dict(theta)} has no interior optimum: A, B, alpha and beta must '
      'be positive; fit more sizes and budgets.'
    )
  flops = np.asarray(flops, float)
  ratio = alpha * theta['A'] / (beta * theta['B'])
  # Logs: the powers of FLOPs leave the range of floats otherwise.
  log_size = (np.log(ratio) + theta['beta'] * np.log(flops / cost.factor)) / (
    alpha + beta
  )
  size = np.exp(log_size)
  tokens = cost.tokens(size, flops)
  return size, tokens, chinchilla(theta, {'N': size, 'D': tokens})
