"""A synthetic sweep whose laws are known."""

import numpy as np
import pytest

THETA = dict(E=0.85, A=60.0, B=220.0, alpha=0.34, beta=0.31)
# Activation ratio, and the factor on A and B that a variant gains.
VARIANTS = {
  'dense': (1.0, 1.0),
  'moe 1/4': (0.25, 0.9),
  'moe 1/16': (1 / 16, 0.8),
}
BUDGETS = (1e13, 3e13, 1e14)


def variant_theta(variant):
  gain = VARIANTS[variant][1]
  return {**THETA, 'A': THETA['A'] * gain, 'B': THETA['B'] * gain}


def law(theta, size, tokens):
  decay_N = theta['A'] * size ** -theta['alpha']
  decay_D = theta['B'] * tokens ** -theta['beta']
  return theta['E'] + decay_N + decay_D


def make_rows(
  noise=0.01,
  budgets=BUDGETS,
  sizes=4,
  seeds=1,
  seed=0,
  variants=tuple(VARIANTS),
):
  """Rows as a sweep writes them; C = 6 N D exactly."""
  rng = np.random.default_rng(seed)
  rows = []
  for variant in variants:
    ratio = VARIANTS[variant][0]
    for flops in budgets:
      centre = 2.2e5 * (flops / 1e13) ** 0.48
      for size in centre * np.geomspace(1 / 4, 4, sizes):
        tokens = flops / (6 * size)
        for s in range(seeds):
          exact = law(variant_theta(variant), size, tokens)
          loss = exact * np.exp(noise * rng.standard_normal())
          rows.append(_row(variant, ratio, flops, size, tokens, loss, s))
  return rows


def _row(variant, ratio, flops, size, tokens, loss, seed):
  return {
    'name': f'{variant} {flops:.0e} {size:.0f} seed {seed}',
    'status': 'ok',
    'seed': seed,
    'steps': int(tokens // 2048),
    'tokens': tokens,
    'train_flops': flops,
    'flops_per_token': 6 * size,
    'params_total': size / ratio,
    'params_active': size,
    'params_total_non_embedding': 0.9 * size / ratio,
    'params_active_non_embedding': 0.9 * size,
    'loss': float(loss),
    'loss_train': float(loss),
    'seconds': 12.0,
    'tokens_per_s': tokens / 12,
    'data_digest': 'a1b2c3d4',
    'labels': {
      'variant': variant,
      'budget_flops': flops,
      'activation_ratio': ratio,
    },
    'environment': {
      'commit': '0123abcd',
      'hardware': 'cpu, 2 cores',
      'versions': {'jax': '0.10.2'},
    },
  }


@pytest.fixture(scope='session')
def rows():
  return make_rows


@pytest.fixture(scope='session')
def theta_of():
  return variant_theta
