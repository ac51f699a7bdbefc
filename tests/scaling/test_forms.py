import numpy as np
import pytest
import scipy.optimize

from moejax.scaling import forms

FORMS = {
  name: form
  for name, form in vars(forms).items()
  if isinstance(form, forms.PowerSum)
}


def test_chinchilla_is_its_equation():
  theta = dict(E=1.5, A=300.0, B=500.0, alpha=0.3, beta=0.4)
  N, D = np.array([1e6, 1e9]), np.array([1e8, 1e10])
  found = forms.chinchilla(theta, {'N': N, 'D': D})
  np.testing.assert_allclose(
    found, 1.5 + 300.0 / N**0.3 + 500.0 / D**0.4, rtol=1e-13
  )


def test_over_training_is_its_equation():
  theta = dict(E=1.5, a=140.0, b=190.0, eta=0.12)
  C, M = np.array([1e18, 1e21]), np.array([20.0, 640.0])
  found = forms.over_training(theta, {'C': C, 'M': M})
  want = 1.5 + (140.0 * M**0.12 + 190.0 * M**-0.12) * C**-0.12
  np.testing.assert_allclose(found, want, rtol=1e-13)


@pytest.mark.parametrize('name', FORMS)
def test_published_coefficients_give_their_test_vector(name):
  for published in FORMS[name].published.values():
    found = FORMS[name](published.theta, published.covariates)
    assert found[0] == pytest.approx(published.loss, abs=5e-5)
    assert set(published.theta) == set(FORMS[name].parameters)


def test_the_printed_law_sizes_seventy_billion_parameters_as_the_paper_does():
  theta = forms.chinchilla.published['printed'].theta
  ratio = theta['alpha'] * theta['A'] / (theta['beta'] * theta['B'])
  total = theta['alpha'] + theta['beta']
  size, tokens, _ = forms.optimum(theta, 5.76e23)
  want = ratio ** (1 / total) * (5.76e23 / 6) ** (theta['beta'] / total)
  assert size == pytest.approx(want, rel=1e-12)
  assert 6 * size * tokens == pytest.approx(5.76e23, rel=1e-12)


@pytest.mark.parametrize('cost', [forms.Cost(), forms.Cost(20.0, -0.08)])
@pytest.mark.parametrize('flops', [1e13, 1e18, 1e24])
def test_optimum_equals_numeric_minimisation(cost, flops):
  theta = dict(E=1.7, A=400.0, B=900.0, alpha=0.34, beta=0.29)

  def loss(log_size):
    size = np.exp(log_size)
    tokens = flops / (cost.factor * size ** (1 + cost.excess))
    return 400.0 * size**-0.34 + 900.0 * tokens**-0.29

  found = scipy.optimize.minimize_scalar(
    loss, bracket=(np.log(1e3), np.log(1e12)), options=dict(xtol=1e-10)
  )
  size, tokens, least = forms.optimum(theta, flops, cost)
  # A minimum is located to the square root of rounding only.
  assert np.log(size) == pytest.approx(found.x, abs=1e-5)
  assert least[0] == pytest.approx(1.7 + found.fun, rel=1e-12)
  assert cost.flops(size, tokens) == pytest.approx(flops, rel=1e-12)


def test_optimum_refuses_a_law_without_a_minimum():
  theta = dict(E=1.0, A=0.0, B=10.0, alpha=0.3, beta=0.3)
  with pytest.raises(ValueError, match='no interior optimum'):
    forms.optimum(theta, 1e15)


def test_a_missing_or_negative_covariate_is_named():
  theta = forms.chinchilla.published['printed'].theta
  with pytest.raises(ValueError, match="lack 'D'.*found N"):
    forms.chinchilla(theta, {'N': np.ones(2)})
  with pytest.raises(ValueError, match='D=-1.0 must be positive'):
    forms.chinchilla(theta, {'N': np.ones(1), 'D': -np.ones(1)})
