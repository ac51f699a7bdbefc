"""Decays and write strengths: formulas in float64, bounds, extremes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.mixers import decays, writes

B, T, D, G, K = 2, 3, 6, 4, 5


def made(module, shape, dtype=jnp.float32, scale=1.0):
  """(float64 parameters, float64 x, log decay)."""
  x = scale * jax.random.normal(jax.random.key(1), (B, T, D))

  @jax.jit
  def both(x):
    params = nn.unbox(module.init(jax.random.key(0), x, shape))
    return params, module.apply(params, x.astype(dtype), shape)

  params, got = both(x)
  assert got.dtype == jnp.float32 and got.shape == (B, T, *shape)
  wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  return wide.get('params', {}), np.asarray(x, np.float64), got


def logits(p, x):
  if 'down' in p:
    x = x @ p['down']['kernel']
  return np.tensordot(x, p['logits']['kernel'], 1)


def check(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('rank', [None, 2])
@pytest.mark.parametrize('shape', [(G,), (G, K)])
def test_softplus(shape, rank):
  p, x, got = made(decays.Softplus(rank=rank), shape)
  rate = np.exp(p['A_log']).reshape(G, *(1,) * (len(shape) - 1))
  check(got, -rate * np.log1p(np.exp(logits(p, x) + p['dt_bias'])))
  assert ('down' in p) == (rank is not None)


def test_bounded():
  p, x, got = made(decays.Bounded(rank=2), (G, K))
  assert (p['A_log'] == 0).all()
  steep = np.exp(p['A_log'])[:, None]
  check(got, -5 / (1 + np.exp(-steep * (logits(p, x) + p['dt_bias']))))


def test_log_sigmoid():
  p, x, got = made(decays.LogSigmoid(rank=3), (G, K))
  check(got, -np.log1p(np.exp(-logits(p, x) - p['bias'])) / 16)


def test_retention_and_lightning_are_constant():
  h = np.arange(G)
  p, _, got = made(decays.Retention(), (G,))
  assert not p
  check(got, np.broadcast_to(np.log(1 - 2.0 ** (-5 - h)), got.shape))
  _, _, got = made(decays.Lightning(depth=0.25), (G,))
  want = -(2.0 ** (-8 * (h + 1) / G)) * (0.75 + 1e-5)
  check(got, np.broadcast_to(want, got.shape))


@pytest.mark.parametrize(
  'module', [decays.Softplus(), decays.Bounded(), decays.LogSigmoid()]
)
def test_no_input_makes_a_decay_that_grows_or_is_not_finite(module):
  scale = jnp.array([0.0, 1.0, 1e4])[:, None]
  _, _, got = made(module, (G, K), jnp.bfloat16, scale)
  assert (got <= 0).all() and np.isfinite(got).all()
  assert got.min() >= -5 or not isinstance(module, decays.Bounded)


@pytest.mark.parametrize('maximum', [1.0, 2.0])
def test_write_strength(maximum):
  p, x, got = made(writes.Sigmoid(maximum=maximum), (G,))
  check(got, maximum / (1 + np.exp(-logits(p, x))))


def test_steps_start_log_uniform_and_rates_uniform():
  bias = decays.step_bias(jax.random.key(0), (4000,))
  step = np.log(np.log1p(np.exp(np.asarray(bias, np.float64))))
  low, high = np.log(1e-3), np.log(1e-1)
  assert low - 1e-3 <= step.min() and step.max() <= high + 1e-3
  np.testing.assert_allclose(step.mean(), (low + high) / 2, rtol=0.02)
  rate = np.exp(decays.log_uniform(1.0, 16.0)(jax.random.key(0), (4000,)))
  assert rate.min() >= 1 and rate.max() <= 16
  np.testing.assert_allclose(rate.mean(), 8.5, rtol=0.03)


@pytest.mark.parametrize('rank', [None, 2])
def test_flops_are_two_for_each_weight(rank):
  module = decays.Softplus(rank=rank)
  p, _, _ = made(module, (G, K))
  weights = sum(a['kernel'].size for a in p.values() if isinstance(a, dict))
  assert module.flops(D, (G, K)) == 2 * weights
