import functools
import itertools

import numpy as np
import pytest
import scipy.optimize

from moejax.scaling import fit, forms
from moejax.scaling.fit import robust

THETA = dict(E=0.85, A=60.0, B=220.0, alpha=0.34, beta=0.31)


def _grid(noise=0.0, seed=0):
  """Three budgets of four sizes at C = 6 N D."""
  flops = np.repeat([1e13, 3e13, 1e14], 4)
  size = np.tile(np.geomspace(5e4, 8e5, 4), 3) * (flops / 1e13) ** 0.5
  covariates = {'N': size, 'D': flops / (6 * size)}
  loss = forms.chinchilla(THETA, covariates)
  rng = np.random.default_rng(seed)
  return covariates, loss * np.exp(noise * rng.standard_normal(len(loss)))


@functools.cache
def _noisy_huber():
  """The fit to the grid with 1 % of noise, from all starts."""
  return fit.huber(forms.chinchilla, *_grid(noise=0.01))


def _brute(covariates, loss, exponents):
  """Least relative squares by trying every set of nonzero coefficients."""
  alpha, beta = exponents
  columns = np.stack(
    [
      np.ones_like(loss),
      covariates['N'] ** -alpha,
      covariates['D'] ** -beta,
    ],
    1,
  )
  columns = columns / loss[:, None]
  best = np.inf
  for count in (1, 2, 3):
    for chosen in itertools.combinations(range(3), count):
      part = columns[:, chosen]
      found = np.linalg.lstsq(part, np.ones(len(loss)), rcond=None)[0]
      if (found >= 0).all():
        best = min(best, np.sum((part @ found - 1) ** 2))
  return best


BOX = np.log(forms.EXPONENT_RANGE)


# A loss that grows with N makes a bound active.
@pytest.mark.parametrize('growth', [0.0, 0.2])
def test_varpro_equals_brute_force(growth):
  covariates, loss = _grid(noise=0.01)
  loss = loss * (covariates['N'] / 1e5) ** growth

  def objective(log_exponents):
    return _brute(covariates, loss, np.exp(np.clip(log_exponents, *BOX)))

  axis = np.log(np.geomspace(0.006, 2.9, 40))
  end = scipy.optimize.minimize(
    objective,
    min(itertools.product(axis, axis), key=objective),
    method='Nelder-Mead',
    options=dict(xatol=1e-8, fatol=1e-16, maxiter=2000),
  )
  found = fit.varpro(forms.chinchilla, covariates, loss)
  assert found.objective <= end.fun * (1 + 1e-4)
  mine = [found.theta['alpha'], found.theta['beta']]
  assert found.objective == pytest.approx(
    _brute(covariates, loss, mine), rel=1e-6
  )


@pytest.mark.parametrize('method', [fit.varpro, fit.huber])
def test_a_law_without_noise_is_recovered(method):
  covariates, loss = _grid()
  found = method(forms.chinchilla, covariates, loss)
  for name, value in THETA.items():
    assert found.theta[name] == pytest.approx(value, rel=2e-3), name
  assert np.abs(found.residuals).max() < 1e-6


def test_both_methods_predict_six_times_the_compute_from_noisy_runs():
  covariates, loss = _grid(noise=0.002)
  first = fit.varpro(forms.chinchilla, covariates, loss)
  second = fit.huber(forms.chinchilla, covariates, loss)
  larger = {'N': np.array([1e6]), 'D': np.array([1e8])}
  exact = forms.chinchilla(THETA, larger)
  assert first.predict(larger) == pytest.approx(exact, rel=0.005)
  assert second.predict(larger) == pytest.approx(exact, rel=0.005)
  assert first.agreeing == first.restarts == 16
  assert 2 <= second.agreeing < second.restarts == 96


def test_the_gradient_of_the_huber_objective_is_its_derivative():
  covariates, loss = _grid(noise=0.01)
  problem = robust._Problem.of(
    forms.chinchilla, covariates, loss, 1e-3, None, {}
  )
  x = np.array([-0.2, 4.0, 5.3, 0.33, 0.3])

  def value(y):
    return problem.objective(y)[0]

  _, gradient = problem.objective(x)
  numeric = scipy.optimize.approx_fprime(x, value, 1e-7)
  np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-6)


def test_huber_ignores_one_diverged_run_that_least_squares_follows():
  covariates, loss = _grid()
  spoiled = loss.copy()
  spoiled[5] *= 1.3
  robust = fit.huber(forms.chinchilla, covariates, spoiled)
  others = np.arange(12) != 5
  error = np.abs(robust.predict(covariates) / loss - 1)[others]
  plain = fit.varpro(forms.chinchilla, covariates, spoiled)
  plain_error = np.abs(plain.predict(covariates) / loss - 1)[others]
  assert error.max() < 2e-3 < 1e-2 < plain_error.max()


def test_parameters_still_at_their_start_are_named(monkeypatch):
  covariates, loss = _grid(noise=0.01)
  full = _noisy_huber()
  monkeypatch.setattr(robust, 'MAX_STEPS', 0)
  cut = fit.huber(forms.chinchilla, covariates, loss, starts=4, seed=3)
  assert not any('still at the start' in w for w in full.warnings)
  # One step cannot reach a term that starts with no share in the loss.
  assert any(w == 'still at the start: A, B, alpha, beta' for w in cut.warnings)


def test_a_search_cut_short_says_so(monkeypatch):
  monkeypatch.setattr(robust, 'MAX_STEPS', 6)
  covariates, loss = _grid(noise=0.01)
  found = fit.huber(forms.chinchilla, covariates, loss, starts=4)
  assert any('stopped early' in w for w in found.warnings)


def test_a_pinned_asymptote_stays_and_the_rest_is_recovered():
  flops = np.geomspace(1e13, 1e16, 5)
  loss = 0.6 + 200.0 * flops**-0.15
  found = fit.varpro(
    forms.compute_frontier, {'C': flops}, loss, pinned={'E': 0.6}
  )
  assert found.theta['E'] == 0.6
  assert found.theta['a'] == pytest.approx(200.0, rel=1e-4)
  assert found.theta['b'] == pytest.approx(0.15, rel=1e-5)
  with pytest.raises(ValueError, match=r"pinned=\['q'\] must be among"):
    fit.varpro(forms.compute_frontier, {'C': flops}, loss, pinned={'q': 1.0})


def test_weights_count_runs_as_repeats_do():
  covariates, loss = _grid(noise=0.01)
  weights = np.ones(12)
  weights[3] = 2.0
  weighted = fit.varpro(forms.chinchilla, covariates, loss, weights=weights)
  order = [*range(12), 3]
  repeated = fit.varpro(
    forms.chinchilla, {k: v[order] for k, v in covariates.items()}, loss[order]
  )
  assert weighted.objective == pytest.approx(repeated.objective, rel=1e-6)
  assert weighted.theta['alpha'] == pytest.approx(
    repeated.theta['alpha'], rel=1e-3
  )


def test_a_line_in_logs_is_polyfit():
  flops = np.geomspace(1e13, 1e16, 6)
  rng = np.random.default_rng(0)
  size = 0.2 * flops**0.5 * np.exp(0.1 * rng.standard_normal(6))
  found = fit.varpro(forms.allocation, {'C': flops}, size)
  slope, offset = np.polyfit(np.log(flops), np.log(size), 1)
  assert found.theta['a'] == pytest.approx(slope, rel=1e-9)
  assert found.theta['k'] == pytest.approx(np.exp(offset), rel=1e-7)


def test_too_few_runs_and_impossible_losses_are_refused():
  covariates, loss = _grid()
  few = {k: v[:4] for k, v in covariates.items()}
  with pytest.raises(fit.FitRefused, match='4 runs cannot fit the 5 free'):
    fit.varpro(forms.chinchilla, few, loss[:4])
  with pytest.raises(fit.FitRefused, match='finite and above 0'):
    fit.huber(forms.chinchilla, covariates, np.where(loss > 3, np.nan, loss))


def test_as_many_parameters_as_runs_is_said():
  covariates, loss = _grid(noise=0.01)
  few = {k: v[:5] for k, v in covariates.items()}
  found = fit.varpro(forms.chinchilla, few, loss[:5])
  assert any('as many parameters as runs' in w for w in found.warnings)


def test_refit_to_the_same_losses_returns_the_solution():
  covariates, loss = _grid(noise=0.01)
  least_squares = fit.varpro(forms.chinchilla, covariates, loss)
  for found in (least_squares, _noisy_huber()):
    again = fit.refit(found, covariates, loss)
    want = [found.theta[p] for p in found.form.parameters]
    np.testing.assert_allclose(again, want, rtol=1e-2)
