"""The best size at given training FLOPs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moejax.scaling.forms.loss import chinchilla
from moejax.scaling.forms.power_sum import Theta


class Cost(NamedTuple):
  """Training FLOPs of a run as `factor * N^(1 + excess) * D`.

  6ND is `Cost(6, 0)`. Attention scores, heads and routers make small models
  dearer per parameter, so that `excess` is then negative.
  """

  factor: float = 6.0
  excess: float = 0.0

  @classmethod
  def through(cls, size, flops_per_token) -> Cost:
    """The law fitted to sizes and their training FLOPs per token, `[models]`.

    Models of one size fix the factor only.
    """
    x = np.log(size)
    y = np.log(flops_per_token) - x
    if np.ptp(x) < 1e-9:
      return cls(float(np.exp(np.mean(y))), 0.0)
    excess, offset = np.polyfit(x, y, 1)
    return cls(float(np.exp(offset)), float(excess))

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


def optimum_if_any(
  theta: Theta, flops: np.ndarray, cost: Cost = SIX
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
  """As `optimum`; None if there is no interior minimum."""
  try:
    return optimum(theta, flops, cost)
  except ValueError:
    return None
