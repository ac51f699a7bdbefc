import numpy as np
import pytest

from moejax.scaling import analysis, rates, runs

RATES = (0.005, 0.01, 0.02, 0.04)
BATCHES = (512.0, 1024.0, 2048.0)
BUDGETS = (1e13, 3e13, 1e14)


def _searches(rows, best_rate, best_batch, budget=1e13, batches=BATCHES):
  """Rows of a map whose log loss is a quadratic with a known minimum."""
  model = next(r for r in rows() if r['labels']['budget_flops'] == budget)
  out = []
  for rate in RATES:
    for batch in batches:
      u, v = np.log2(rate / best_rate), np.log2(batch / best_batch)
      labels = dict(role='rates', peak_lr=rate, batch_tokens=batch)
      out.append(
        {
          **model,
          'name': f'{budget:.0e} {rate} {batch}',
          'loss': 2.0 + 0.03 * u * u + 0.02 * v * v + 0.01 * u * v,
          'labels': {**model['labels'], **labels},
        }
      )
  return out


def _maps(table):
  good, _ = runs.parse(table)
  return rates.maps(good)[0]


def test_the_minimum_of_a_quadratic_is_found_exactly(rows):
  (found,) = _maps(_searches(rows, 0.013, 900.0))
  assert found.rate == pytest.approx(0.013, rel=1e-9)
  assert found.batch == pytest.approx(900.0, rel=1e-9)
  assert found.loss == pytest.approx(2.0, rel=1e-12)
  assert found.fitted == ('rate', 'batch') and not found.edges


def test_a_minimum_at_the_edge_is_said_and_not_extrapolated(rows):
  (found,) = _maps(_searches(rows, 0.013, 100.0))
  assert found.batch == 512.0 and found.fitted == ('rate',)
  assert list(found.edges) == ['batch']
  assert 'smallest batch tried, 512: try smaller' in found.edges['batch']
  (high,) = _maps(_searches(rows, 0.5, 900.0))
  assert high.rate == pytest.approx(0.04)
  assert 'largest peak learning rate tried' in high.edges['rate']
  (one,) = _maps(_searches(rows, 0.013, 512.0, batches=(512.0,)))
  assert one.edges == {'batch': 'only one batch was tried'}
  assert one.rate == pytest.approx(0.013, rel=1e-9)


def test_optima_of_several_budgets_make_a_law(rows):
  table = [
    row
    for budget in BUDGETS[:2]
    for row in _searches(rows, 0.016 * (budget / 1e13) ** -0.25, 900.0, budget)
  ]
  law = rates.law(_maps(table), 'dense', 'rate')
  assert law.fit.theta['a'] == pytest.approx(0.25, rel=1e-6)
  assert law(1e15) == pytest.approx(0.016 * 100**-0.25, rel=1e-6)
  single = rates.law(_maps(table[:12]), 'dense', 'rate')
  assert single.fit is None and single(1e15) == pytest.approx(0.016)
  assert rates.law(_maps(table), 'moe 1/4', 'rate') is None


def test_searches_of_rates_enter_no_law(rows):
  plain = rows(variants=('dense',))
  unplaced = {**plain[0], 'name': 'unplaced', 'loss': 1.0}
  unplaced['labels'] = {**unplaced['labels'], 'role': 'rates'}
  searched = [*plain, *_searches(rows, 0.013, 900.0), unplaced]
  one, two = (
    analysis.analyse(t, draws=0, huber_starts=1) for t in (plain, searched)
  )
  assert one.surfaces['dense'][0].theta == two.surfaces['dense'][0].theta
  assert len(two.maps) == 1 and two.noise is None
  assert [e.name for e in two.excluded] == ['unplaced']
  rate = two.choices[0].order[0].rate
  assert rate(1e16) == pytest.approx(0.013, rel=1e-9)
  with pytest.raises(ValueError, match='add the runs of the sweep'):
    analysis.analyse(searched[len(plain) :], draws=0, huber_starts=1)
