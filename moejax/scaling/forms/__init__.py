"""Laws: functions `(theta, covariates) -> value` with named parameters.

A law that is a sum of non-negative terms, each a product of powers of the
covariates, is written as data (`PowerSum`), so that one fitter serves them all.
"""

from moejax.scaling.forms.efficiency import (
  allocation,
  batch_tokens,
  efficiency_leverage,
  learning_rate,
)
from moejax.scaling.forms.loss import (
  chinchilla,
  compute_frontier,
  granularity,
  joint,
  over_training,
  repetition,
  routed,
  sparsity,
)
from moejax.scaling.forms.optimum import SIX, Cost, optimum, optimum_if_any
from moejax.scaling.forms.power_sum import (
  EXPONENT_RANGE,
  Covariates,
  Derived,
  PowerSum,
  Published,
  Theta,
)

__all__ = [
  'EXPONENT_RANGE',
  'SIX',
  'Cost',
  'Covariates',
  'Derived',
  'PowerSum',
  'Published',
  'Theta',
  'allocation',
  'batch_tokens',
  'chinchilla',
  'compute_frontier',
  'efficiency_leverage',
  'granularity',
  'joint',
  'learning_rate',
  'optimum',
  'optimum_if_any',
  'over_training',
  'repetition',
  'routed',
  'sparsity',
]
