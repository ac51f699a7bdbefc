import numpy as np
import pytest

from moejax.scaling import fit, forms, noise, resample

THETA = dict(E=0.85, A=60.0, B=220.0, alpha=0.34, beta=0.31)


def _grid():
  flops = np.repeat([1e13, 3e13, 1e14, 3e14], 4)
  size = np.tile(np.geomspace(5e4, 8e5, 4), 4) * (flops / 1e13) ** 0.5
  covariates = {'N': size, 'D': flops / (6 * size)}
  return covariates, forms.chinchilla(THETA, covariates)


@pytest.mark.parametrize('method', [fit.varpro, fit.huber])
def test_known_coefficients_lie_within_their_intervals(method):
  covariates, loss = _grid()
  error = np.random.default_rng(3).standard_normal(len(loss))
  found = method(forms.chinchilla, covariates, loss * np.exp(0.005 * error))
  found = resample.bootstrap(found, covariates, draws=80)
  for place, (name, value) in enumerate(THETA.items()):
    near = resample.interval(found.draws[:, place])
    assert near.low95 <= value <= near.high95, name
    assert near.low95 < near.low80 < near.high80 < near.high95
    assert near.error > 0


def test_intervals_of_a_power_law_cover_at_their_nominal_rate():
  flops = np.geomspace(1e13, 1e16, 6)
  rng = np.random.default_rng(0)
  inside = 0
  for trial in range(200):
    size = 0.2 * flops**0.5 * np.exp(0.1 * rng.standard_normal(6))
    found = fit.varpro(forms.allocation, {'C': flops}, size)
    found = resample.bootstrap(found, {'C': flops}, draws=100, seed=trial)
    near = resample.interval(found.draws[:, 1])
    inside += near.low80 <= 0.5 <= near.high80
  # Binomial deviation of 200 trials at 0.8 is 5.7.
  assert 160 - 3 * 5.7 < inside < 160 + 3 * 5.7


def test_scales_widen_with_few_degrees_of_freedom_and_vanish_with_many():
  rng = np.random.default_rng(0)
  few = noise.scales(rng, 4, 20_000)
  many = noise.scales(rng, 4000, 20_000)
  # E[4 / chi2_4] = 4 / (4 - 2).
  assert np.mean(few**2) == pytest.approx(2.0, rel=0.15)
  assert np.mean(many**2) == pytest.approx(1.0, rel=0.01)


def test_the_same_seed_draws_the_same_refits():
  covariates, loss = _grid()
  error = np.random.default_rng(1).standard_normal(len(loss))
  found = fit.varpro(forms.chinchilla, covariates, loss * np.exp(0.01 * error))
  one, two, other = (
    resample.bootstrap(found, covariates, draws=5, seed=s).draws
    for s in (7, 7, 8)
  )
  np.testing.assert_array_equal(one, two)
  assert not np.array_equal(one, other)


def test_a_fit_without_freedom_has_no_draws():
  covariates, loss = _grid()
  few = {k: v[:5] for k, v in covariates.items()}
  found = fit.varpro(forms.chinchilla, few, loss[:5])
  assert resample.bootstrap(found, few, draws=50).draws is None
  assert resample.interval(None) is None
  assert resample.interval(np.full(100, np.nan)) is None
