"""Laws of loss, with the coefficients that their papers print.

Losses are nats per token, N parameters, D tokens, C training FLOPs, E experts,
A the share of experts that is active, G granularity.
"""

from __future__ import annotations

import math

import numpy as np

from moejax.scaling.forms.power_sum import Derived, PowerSum, Published
from moejax.scaling.forms.saturation import saturated

SIGNED = (-1.0, 1.0)

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
    ),
    'RedPajama': Published(
      dict(E=1.84, a=212.0, b=367.0, eta=0.136),
      'arXiv 2403.08540, equation 4 fitted on RedPajama',
      dict(C=2.4e21, M=20.0),
      2.5361,
    ),
  },
)


def _experts(covariates, E_start, E_max):
  return saturated(covariates['E'], E_start, E_max, offset=1.0)


# Source: arXiv 2202.01169, equations 8 and 20; N is of the dense model, the
# coefficient K is 10^d of the source, c is of logs to base 10.
routed = PowerSum(
  'log10 L = log10 K + a log10 N + b log10 Ehat + c log10 N log10 Ehat',
  {
    'K': {
      'a': {'N': 1},
      'b': {'Ehat': 1},
      'c': {('N', 'Ehat'): 1 / math.log(10)},
    }
  },
  derived={'Ehat': Derived(('E',), ('E_start', 'E_max'), _experts)},
  ranges={
    'a': SIGNED,
    'b': SIGNED,
    'c': SIGNED,
    'E_start': (1.0, 8.0),
    'E_max': (20.0, 5000.0),
  },
  published={
    'S-BASE': Published(
      dict(
        a=-0.082, b=-0.108, c=0.009, K=10**1.104, E_start=1.847, E_max=314.478
      ),
      'arXiv 2202.01169, table 3',
      dict(N=1e9, E=64),
      2.0858,
    ),
    'RL-R': Published(
      dict(
        a=-0.083, b=-0.126, c=0.012, K=10**1.111, E_start=1.880, E_max=469.982
      ),
      'arXiv 2202.01169, table 3',
      dict(N=1e9, E=64),
      2.1498,
    ),
    'HASH': Published(
      dict(
        a=-0.087, b=-0.136, c=0.012, K=10**1.157, E_start=4.175, E_max=477.741
      ),
      'arXiv 2202.01169, table 3',
      dict(N=1e9, E=64),
      2.1107,
    ),
  },
)

# Source: arXiv 2402.07871, equation 9 and table 1: N is of all experts, G of
# the expert's hidden size.
granularity = PowerSum(
  'L = c + (g / G^gamma + a) / N^alpha + b / D^beta',
  {
    'c': {},
    'g': {'gamma': {'G': -1}, 'alpha': {'N': -1}},
    'a': {'alpha': {'N': -1}},
    'b': {'beta': {'D': -1}},
  },
  asymptote='c',
  published={
    'moe': Published(
      dict(a=18.1, alpha=0.115, b=30.8, beta=0.147, g=2.1, gamma=0.58, c=0.47),
      'arXiv 2402.07871, table 1',
      dict(N=6.4e9, D=1.6e10, G=8.0),
      2.8397,
    )
  },
)

# Source: arXiv 2502.05172, equation 5 and appendix B; N active parameters.
joint = PowerSum(
  'L = c + a Ehat^delta N^(alpha + gamma ln Ehat) '
  '+ b Ehat^omega D^(beta + zeta ln Ehat)',
  {
    'c': {},
    'a': {
      'delta': {'Ehat': 1},
      'alpha': {'N': 1},
      'gamma': {('N', 'Ehat'): 1},
    },
    'b': {
      'omega': {'Ehat': 1},
      'beta': {'D': 1},
      'zeta': {('D', 'Ehat'): 1},
    },
  },
  asymptote='c',
  derived={'Ehat': Derived(('E',), ('E_start', 'E_max'), _experts)},
  ranges={
    'delta': SIGNED,
    'alpha': SIGNED,
    'gamma': (-0.2, 0.2),
    'omega': SIGNED,
    'beta': SIGNED,
    'zeta': (-0.2, 0.2),
    'E_start': (1.0, 8.0),
    'E_max': (20.0, 5000.0),
  },
  published={
    'printed': Published(
      dict(
        a=35.91,
        alpha=-0.1889,
        delta=-0.2285,
        gamma=0.0098,
        b=35.98,
        beta=-0.1775,
        omega=0.5529,
        zeta=-0.0259,
        E_start=2.0732,
        E_max=290.4521,
        c=1.3637,
      ),
      'arXiv 2502.05172, appendix B',
      dict(N=1e9, D=2e10, E=8),
      2.5088,
    )
  },
)

# Source: arXiv 2501.12370, equation 4; N all parameters, A = 1 - sparsity.
sparsity = PowerSum(
  'L = e + a / N^alpha + b / D^beta + c / A^lambda + d / (A^delta N^gamma)',
  {
    'e': {},
    'a': {'alpha': {'N': -1}},
    'b': {'beta': {'D': -1}},
    'c': {'lambda': {'A': -1}},
    'd': {'delta': {'A': -1}, 'gamma': {'N': -1}},
  },
  asymptote='e',
  ranges={'lambda': SIGNED},
  published={
    'printed': Published(
      dict(
        e=0.94,
        a=16612.50,
        alpha=0.5962,
        b=5455.67,
        beta=0.3954,
        c=0.4598,
        d=17.26,
        delta=0.1603,
        gamma=0.1595,
      )
      | {'lambda': -0.1666},
      'arXiv 2501.12370, table 2',
      dict(N=1e10, D=1e11, A=0.1),
      2.1498,
    )
  },
)


def _effective(total, unique, scale):
  """unique + unique scale (1 - exp(-(total / unique - 1) / scale))."""
  repeats = np.maximum(total / unique - 1, 0)
  return np.minimum(total, unique) * (1 - scale * np.expm1(-repeats / scale))


# Source: arXiv 2305.16264, equations 5 and 17; U_D unique tokens, U_N the size
# that is best for them (of `optimum`), both given as covariates.
repetition = PowerSum(
  "L = E + A / N'^alpha + B / D'^alpha, X' = U + U R (1 - exp(-(X/U - 1) / R))",
  {'E': {}, 'A': {'alpha': {"N'": -1}}, 'B': {'alpha': {"D'": -1}}},
  asymptote='E',
  derived={
    "N'": Derived(
      ('N', 'U_N'), ('R_N',), lambda z, R_N: _effective(z['N'], z['U_N'], R_N)
    ),
    "D'": Derived(
      ('D', 'U_D'), ('R_D',), lambda z, R_D: _effective(z['D'], z['U_D'], R_D)
    ),
  },
  ranges={'R_N': (0.3, 300.0), 'R_D': (0.3, 300.0)},
  published={
    'C4': Published(
      dict(
        E=math.exp(0.6254804),
        A=math.exp(6.255414),
        B=math.exp(7.3049974),
        alpha=0.3526596,
        R_N=5.309743,
        R_D=15.387756,
      ),
      'arXiv 2305.16264, appendix A',
      dict(N=2.8e9, U_N=1e9, D=5.6e10, U_D=1.4e10),
      2.3679,
    )
  },
)
