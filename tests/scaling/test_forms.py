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


def hat(x, start, maximum):
  return 1 / (1 / (x + 1 / (1 / start - 1 / maximum)) + 1 / maximum)


def experts(p, E):
  return hat(E - 1, p['E_start'], p['E_max'])


def repeated(total, unique, scale):
  return unique * (1 + scale * (1 - np.exp(-(total / unique - 1) / scale)))


N, D, C = 1.3e9, 2.1e10, 3e20
# The equations of the papers, written out for one run.
EQUATIONS = {
  'granularity': lambda p, G: (
    p['c']
    + (p['g'] / G ** p['gamma'] + p['a']) / N ** p['alpha']
    + p['b'] / D ** p['beta']
  ),
  'routed': lambda p, E: (
    10
    ** (
      np.log10(p['K'])
      + p['a'] * np.log10(N)
      + p['b'] * np.log10(experts(p, E))
      + p['c'] * np.log10(N) * np.log10(experts(p, E))
    )
  ),
  'joint': lambda p, E: (
    p['c']
    + p['a']
    * experts(p, E) ** p['delta']
    * N ** (p['alpha'] + p['gamma'] * np.log(experts(p, E)))
    + p['b']
    * experts(p, E) ** p['omega']
    * D ** (p['beta'] + p['zeta'] * np.log(experts(p, E)))
  ),
  'sparsity': lambda p, A: (
    p['e']
    + p['a'] / N ** p['alpha']
    + p['b'] / D ** p['beta']
    + p['c'] / A ** p['lambda']
    + p['d'] / (A ** p['delta'] * N ** p['gamma'])
  ),
  'efficiency_leverage': lambda p, A, G: (
    hat(A, p['A_start'], p['A_max'])
    ** (
      p['a']
      + p['d'] * np.log10(C)
      + p['gamma'] * np.log2(G) ** 2
      + p['beta'] * np.log2(G)
    )
  ),
  'repetition': lambda p, U_N, U_D: (
    p['E']
    + p['A'] / repeated(N, U_N, p['R_N']) ** p['alpha']
    + p['B'] / repeated(D, U_D, p['R_D']) ** p['alpha']
  ),
}
OTHERS = dict(E=48.0, A=0.07, G=6.0, U_N=4e8, U_D=3e9)


@pytest.mark.parametrize('name', EQUATIONS)
def test_a_law_is_the_equation_of_its_paper(name):
  form, equation = FORMS[name], EQUATIONS[name]
  for published in form.published.values():
    own = {z: OTHERS[z] for z in form.covariates if z in OTHERS}
    found = form(published.theta, dict(N=N, D=D, C=C) | own)
    want = equation(published.theta, **own)
    assert found[0] == pytest.approx(want, rel=1e-11)


def test_the_joint_law_reduces_to_the_printed_law_of_each_number_of_experts():
  """arXiv 2502.05172, table 4: m, mu, n, nu of c + m N^mu + n D^nu."""
  table = {
    1: (30.364, -0.1817, 53.984, -0.1965),
    8: (21.833, -0.1676, 119.91, -0.2338),
    32: (16.542, -0.1557, 234.67, -0.2652),
  }
  p = forms.joint.published['printed'].theta
  for count, printed in table.items():
    e = experts(p, count)
    mine = (
      p['a'] * e ** p['delta'],
      p['alpha'] + p['gamma'] * np.log(e),
      p['b'] * e ** p['omega'],
      p['beta'] + p['zeta'] * np.log(e),
    )
    np.testing.assert_allclose(mine, printed, rtol=0.003)


def test_leverage_grows_with_compute_as_its_paper_says():
  form = forms.efficiency_leverage
  theta = form.published['printed'].theta
  C = np.array([1e19, 1e20, 1e21, 1e22])
  for A, want in (
    (0.031, (3.61, 4.55, 5.74, 7.24)),
    (0.008, (4.78, 6.34, 8.41, 11.16)),
  ):
    z = {'C': C, 'A': np.full(4, A), 'G': np.full(4, 12.0)}
    np.testing.assert_allclose(form(theta, z), want, atol=0.005)
  # A dense model has no leverage over itself, and the best granularity is 11.
  z = {'C': C[1:2], 'A': np.ones(1), 'G': np.full(1, 12.0)}
  assert form(theta, z)[0] == pytest.approx(0.99, abs=0.005)
  G = np.geomspace(2, 64, 400)
  z = {'C': np.full(400, 1e22), 'A': np.full(400, 0.031), 'G': G}
  assert G[np.argmax(form(theta, z))] == pytest.approx(11.3, rel=0.02)


@pytest.mark.parametrize('name', FORMS)
def test_published_coefficients_give_their_test_vector(name):
  for published in FORMS[name].published.values():
    found = FORMS[name](published.theta, published.covariates)
    assert found[0] == pytest.approx(published.value, rel=3e-5)
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
