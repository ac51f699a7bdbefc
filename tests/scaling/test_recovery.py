"""Runs drawn from each law with known noise: is the law found again?"""

import numpy as np
import pytest

from moejax.scaling import fit, forms, resample

FORMS = {
  name: form
  for name, form in vars(forms).items()
  if isinstance(form, forms.PowerSum) and form.published
}
NOISE = 0.002
RUNS = 64
# Where runs are drawn, and the larger one that is predicted.
SEEN = {
  'N': (1e7, 1e9),
  'D': (1e8, 3e10),
  'C': (1e17, 1e20),
  'M': (5, 300),
  'E': (2, 128),
  'A': (0.02, 0.9),
  'G': (1, 16),
}
AHEAD = dict(N=4e9, D=1e11, C=1e21, M=80, E=64, A=0.05, G=8, U_N=2e9, U_D=2e10)


def draw(form, seed):
  """Covariates and noisy values of runs, and what lies ahead."""
  rng = np.random.default_rng(seed)
  z = {
    name: np.exp(rng.uniform(*np.log(ends), RUNS))
    for name, ends in SEEN.items()
  }
  # Up to 20 times as many parameters and 50 times as many epochs as is best.
  z['U_N'] = z['N'] * np.exp(rng.uniform(np.log(0.05), np.log(2), RUNS))
  z['U_D'] = z['D'] * np.exp(rng.uniform(np.log(0.02), np.log(2), RUNS))
  z = {name: z[name] for name in form.covariates}
  theta = next(iter(form.published.values())).theta
  values = form(theta, z) * np.exp(NOISE * rng.standard_normal(RUNS))
  ahead = {name: np.array([AHEAD[name]]) for name in form.covariates}
  return z, values, ahead, float(form(theta, ahead)[0])


@pytest.mark.parametrize('name', FORMS)
def test_a_larger_run_is_predicted_within_half_a_percent(name):
  form = FORMS[name]
  z, values, ahead, exact = draw(form, seed=0)
  found = fit.varpro(form, z, values)
  assert found.predict(ahead)[0] == pytest.approx(exact, rel=0.005)
  spread = np.sqrt(np.sum(found.residuals**2) / (RUNS - found.free))
  assert spread == pytest.approx(NOISE, rel=0.4)


@pytest.mark.parametrize('name', ['over_training', 'repetition'])
def test_the_robust_fit_predicts_it_too(name):
  form = FORMS[name]
  z, values, ahead, exact = draw(form, seed=0)
  found = fit.huber(form, z, values, starts=8)
  assert found.predict(ahead)[0] == pytest.approx(exact, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    'chinchilla',
    'over_training',
    'granularity',
    'routed',
    'efficiency_leverage',
  ],
)
def test_intervals_of_predictions_cover_at_their_nominal_rate(name):
  form, inside, trials = FORMS[name], 0, 200
  for trial in range(trials):
    z, values, ahead, exact = draw(form, seed=trial)
    found = resample.bootstrap(
      fit.varpro(form, z, values), z, draws=60, seed=trial
    )
    drawn = [float(form(theta, ahead)[0]) for theta in found.drawn()]
    near = resample.interval(np.array(drawn))
    inside += near.low80 <= exact <= near.high80
  # Three binomial deviations; 60 draws make the interval a little narrow.
  assert 0.8 * trials - 3 * 5.7 - 3 < inside < 0.8 * trials + 3 * 5.7
