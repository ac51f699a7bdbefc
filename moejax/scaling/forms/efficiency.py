"""How much less compute a sparse model needs, and laws of hyperparameters."""

from __future__ import annotations

import math

from moejax.scaling.forms.power_sum import Derived, PowerSum, Published
from moejax.scaling.forms.saturation import saturated


def _activation(covariates, A_start, A_max):
  return saturated(covariates['A'], A_start, A_max)


# Source: arXiv 2507.17702, equation 9 and table 4; A activation ratio, G twice
# the width over the expert's hidden size, C training FLOPs.
# Differs: the source gives no bases of logarithms. Only log2 of granularity
# with log10 of compute gives both its examples, a leverage above 7 at C = 1e22,
# A = 3.1 %, G = 12, and a best granularity near 12.
efficiency_leverage = PowerSum(
  'EL = Ahat^(a + d log10 C + gamma (log2 G)^2 + beta log2 G)',
  {
    'one': {
      'a': {'Ahat': 1},
      'd': {('Ahat', 'C'): 1 / math.log(10)},
      'gamma': {('Ahat', 'G', 'G'): 1 / math.log(2) ** 2},
      'beta': {('Ahat', 'G'): 1 / math.log(2)},
    }
  },
  fixed={'one': 1.0},
  derived={'Ahat': Derived(('A',), ('A_start', 'A_max'), _activation)},
  ranges={
    'a': (-5.0, 5.0),
    'd': (-1.0, 1.0),
    'gamma': (-1.0, 1.0),
    'beta': (-1.0, 1.0),
    'A_start': (1e-4, 0.2),
    'A_max': (2.0, 1e17),
  },
  published={
    'printed': Published(
      dict(
        one=1.0,
        a=1.23,
        d=-7.61e-2,
        gamma=1.67e-2,
        beta=-1.17e-1,
        A_start=1.63e-2,
        A_max=5.28e16,
      ),
      'arXiv 2507.17702, table 4',
      dict(A=0.031, G=12.0, C=1e22),
      7.2449,
    )
  },
)

# N*(C) or D*(C): a straight line in logs.
allocation = PowerSum('X = k C^a', {'k': {'a': {'C': 1}}})

# Peak learning rate of AdamW, and tokens of a batch, by training FLOPs.
learning_rate = PowerSum(
  'eta = k C^-a',
  {'k': {'a': {'C': -1}}},
  published={
    'moe': Published(
      dict(k=1.1576, a=0.1529),
      'arXiv 2507.17702, section 3.1 (64 experts, 4 active, 1 shared; warm-up, '
      'stable, decay)',
      dict(C=1e20),
      0.0010129,
    ),
    'dense': Published(
      dict(k=0.3118, a=0.1250),
      'arXiv 2401.02954, equation 1',
      dict(C=1e20),
      0.00098600,
    ),
  },
)
batch_tokens = PowerSum(
  'B = k C^a',
  {'k': {'a': {'C': 1}}},
  published={
    'moe': Published(
      dict(k=0.0694, a=0.3644),
      'arXiv 2507.17702, section 3.1',
      dict(C=1e20),
      1.34697e6,
    ),
    'dense': Published(
      dict(k=0.2920, a=0.3271),
      'arXiv 2401.02954, equation 1',
      dict(C=1e20),
      1.01714e6,
    ),
  },
)
