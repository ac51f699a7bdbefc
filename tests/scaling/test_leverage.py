import numpy as np
import pytest

from moejax.scaling import (
  analysis,
  fit,
  forms,
  heldout,
  isoflop,
  leverage,
  redraw,
  runs,
)


def _vertices(rows, variant, **kwargs):
  good, _ = runs.parse(rows(**kwargs))
  fitted = redraw.with_draws(isoflop.parabolas(good), draws=100)
  return [p for p in fitted if p.variant == variant]


@pytest.fixture(scope='module')
def exact(rows):
  return analysis.analyse(rows(noise=0.0, sizes=7), draws=0, huber_starts=4)


def test_leverage_is_the_ratio_of_compute_at_equal_loss(exact, theta_of):
  for one in exact.leverages:
    if one.variant == 'dense' or one.notes:
      continue
    # Invert the exact dense frontier by bisection.
    low, high = 1e12, 1e16
    for _ in range(80):
      middle = np.sqrt(low * high)
      dense = forms.optimum(theta_of('dense'), middle)[2][0]
      target = forms.optimum(theta_of(one.variant), one.budget)[2][0]
      low, high = (middle, high) if dense > target else (low, middle)
    # A pure power law through three budgets bends away from the truth.
    assert one.value == pytest.approx(middle / one.budget, rel=0.03)


def test_dense_has_leverage_one_over_itself(exact):
  own = [one.value for one in exact.leverages if one.variant == 'dense']
  np.testing.assert_allclose(own, 1.0, atol=0.03)


def test_the_frontier_inverts():
  theta = dict(E=0.5, a=120.0, b=0.14)
  flops = np.array([1e13, 1e18])
  loss = forms.compute_frontier(theta, {'C': flops})
  back = [leverage.flops_at(theta, x) for x in loss]
  np.testing.assert_allclose(back, flops, rtol=1e-9)
  assert leverage.flops_at(theta, 0.5) == np.inf


def test_leverage_beyond_the_dense_budgets_is_flagged(rows):
  found = analysis.analyse(rows(noise=0.0), draws=0, huber_starts=4)
  top = [one for one in found.leverages if one.budget == 1e14]
  for one in top:
    far = any('extrapolated' in note for note in one.notes)
    assert far == (one.variant != 'dense')
    if far:
      assert one.dense_flops > 1e14


def test_a_loss_below_the_dense_asymptote_has_no_finite_leverage(rows):
  vertices = _vertices(rows, 'dense', noise=0.0)
  law = leverage.frontier(vertices, draws=0)
  law.fit.theta['E'] = vertices[-1].loss + 0.01
  (found,) = leverage.leverages(vertices[-1:], 'dense', law)
  assert found.value is None
  assert 'below the asymptote' in found.notes[0]


def test_few_budgets_pin_the_asymptote_and_four_free_it(rows):
  three = leverage.frontier(_vertices(rows, 'dense', noise=0.0), draws=0)
  assert three.fit.pinned == {'E': 0.0}
  assert 'E pinned to 0' in three.notes[0]
  budgets = (1e13, 1e14, 1e15, 1e16, 1e17)
  five = leverage.frontier(
    _vertices(rows, 'dense', noise=0.0, budgets=budgets, sizes=7), draws=0
  )
  assert not five.fit.pinned
  assert five.fit.theta['E'] == pytest.approx(0.85, abs=0.05)


def test_allocation_has_the_exponents_of_the_closed_form(rows, theta_of):
  vertices = _vertices(rows, 'dense', noise=0.0, sizes=9)
  theta = theta_of('dense')
  want = theta['beta'] / (theta['alpha'] + theta['beta'])
  size = leverage.allocation(vertices, 'size', draws=0)
  tokens = leverage.allocation(vertices, 'tokens', draws=0)
  assert size.fit.theta['a'] == pytest.approx(want, abs=0.01)
  assert tokens.fit.theta['a'] == pytest.approx(1 - want, abs=0.01)


def test_allocation_leaves_unusable_vertices_out(rows):
  kept = [r for r in rows() if r['labels']['budget_flops'] > 1e13]
  edge = [r for r in rows() if r['labels']['budget_flops'] == 1e13]
  edge = [r for r in edge if r['params_active'] > 2e5]
  good, _ = runs.parse(kept + edge)
  vertices = [p for p in isoflop.parabolas(good) if p.variant == 'dense']
  law = leverage.allocation(vertices, 'size', draws=0)
  np.testing.assert_allclose(law.flops, [3e13, 1e14], rtol=1e-9)
  assert '1 unusable vertices left out' in law.notes


def test_one_budget_is_refused(rows):
  vertices = _vertices(rows, 'dense')[:1]
  with pytest.raises(fit.FitRefused, match='1 usable budgets'):
    leverage.frontier(vertices)


def test_held_out_runs_are_those_of_the_largest_budget_and_unseen(rows):
  table = rows()
  spoiled = [
    {**r, 'loss': 2 * r['loss']} if r['train_flops'] == 1e14 else r
    for r in table
  ]
  first = analysis.analyse(table, draws=0, huber_starts=4).held_out
  second = analysis.analyse(spoiled, draws=0, huber_starts=4).held_out
  for one, two in zip(first, second, strict=True):
    assert {r.flops for r in one.runs} == {1e14} == set(one.flops)
    assert one.trained_on == 8
    np.testing.assert_array_equal(one.predicted, two.predicted)


def test_held_out_predictions_are_exact_without_noise(rows):
  for one in analysis.analyse(
    rows(noise=0.0), draws=0, huber_starts=2
  ).held_out:
    np.testing.assert_allclose(one.errors, 0.0, atol=1e-4)


def test_cost_law_recovers_the_cost_of_a_parameter(rows):
  good, _ = runs.parse(rows())
  cost = heldout.cost_law(good)
  assert cost.factor == pytest.approx(6.0, rel=1e-6)
  assert cost.excess == pytest.approx(0.0, abs=1e-9)
