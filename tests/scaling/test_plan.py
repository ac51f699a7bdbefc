"""Plans keep their rules, follow their laws and say what they leave out."""

import csv
import json
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import moejax
from configs import common
from moejax import accounting, main
from moejax.build import ConfigError, build
from moejax.scaling import analysis, forms, plan, record
from moejax.scaling.plan import count as plan_count
from moejax.scaling.plan import spend
from moejax.sweep import hyper

LENGTH = 16
SIZES = [int(n) for n in np.geomspace(2e4, 2e7, 31)]
POWER = plan.Power(k=0.2, a=0.5)


@pytest.fixture(autouse=True)
def counted_by_formula(monkeypatch):
  """Models of `repeats` parameters that cost 7 N^0.98 per token."""

  def describe(model, seq_len):
    size = model['repeats']
    return {'params_active': size, 'flops_per_token': 7.0 * size**0.98}

  monkeypatch.setattr(accounting, 'describe', describe)


def base(rows=8):
  config = common.base()
  config.model = common.node('builtin', repeats=1)
  del config.model['kind']  # a plain mapping builds to itself
  config.train.steps, config.train.budget_flops = None, 1e12
  config.train.batch_size, config.train.seq_len = rows, LENGTH
  config.labels = dict(variant='dense', budget_flops=0.0)
  return config


def family(budgets=(1e12,), variants=('dense',), sizes=SIZES, seeds=(0,)):
  return hyper.cells([
    {
      'name': f'{variant}-{budget:g}-{size}-{seed}',
      'model.repeats': size,
      'train.budget_flops': budget,
      'labels.variant': variant,
      'labels.budget_flops': budget,
      'seed': seed,
    }
    for variant in variants
    for budget in budgets
    for size in sizes
    for seed in seeds
  ])  # fmt: skip


def planned(cells=None, rows=8, **fields):
  fields = dict(choose=plan.Around(), optimum=POWER) | fields
  return plan.Plan(**fields)(cells or family(), base(rows))


def sizes(outcome):
  return [row.one.size for row in outcome.rows]


@pytest.fixture(scope='module')
def one():
  return plan_count.Counted(family()[0], base(), 1e5, 7e5)


@settings(max_examples=60, deadline=None)
@given(
  st.floats(7, 14),
  st.integers(1, 4096),
  st.integers(1, 500),
  st.sampled_from([1, 4, 64]),
  st.sampled_from([0.01, 0.002]),
)
def test_a_cell_keeps_tolerance_and_floor_or_there_is_a_reason(
  one, decade, rows, min_steps, multiple, tolerance
):
  one = one.having({'train.budget_flops': 10**decade})
  rule = spend.Rule(tolerance, min_steps, multiple)
  found = rule.spending(one, rows)

  def steps_of(rows):  # what the training loop will do
    return max(1, round(10**decade / (rows * LENGTH * 7e5)))

  def keeps(rows):
    off = steps_of(rows) * rows * LENGTH * 7e5 / 10**decade - 1
    return steps_of(rows) >= min_steps and abs(off) <= tolerance

  wanted = max(1, round(rows / multiple)) * multiple
  best = [n for n in range(wanted, 0, -multiple) if keeps(n)]
  if not best:
    assert 'below min_steps' in found or 'miss the budget' in found
    return
  assert found.config.train.batch_size == best[0]
  assert found.steps() == steps_of(best[0])
  assert abs(found.error_frac()) <= tolerance
  assert bool(found.notes) == (best[0] != wanted)


def test_every_target_is_a_cell_or_dropped_with_a_reason():
  outcome = planned(family([1e8, 1e12, 1e16], sizes=SIZES[::3]), min_steps=50)
  assert len(outcome.rows) + len(outcome.dropped) == 3 * plan.Around().sizes
  assert outcome.dropped and all(dropped.reason for dropped in outcome.dropped)
  assert all(row.one.steps() >= 50 for row in outcome.rows)


def test_sizes_lie_about_the_best_one_at_the_spacing():
  around = plan.Around(sizes=5, spacing=2.0)
  outcome = planned(family([1e12, 1e13], ['dense', 'moe']), choose=around)
  found = np.array(sizes(outcome)).reshape(4, 5)
  best = 0.2 * np.sqrt([1e12, 1e13, 1e12, 1e13])
  # The family's own steps are of 1.26.
  off = np.log(found / (best[:, None] * 2.0 ** np.arange(-2, 3)))
  assert np.abs(off).max() < math.log(1.26) / 2 + 1e-3
  assert not outcome.dropped


def test_all_seeds_of_a_size_are_run_and_no_other_cell():
  outcome = planned(family(seeds=(0, 1, 2)))
  assert len(outcome.cells) == 3 * 4 and len(set(sizes(outcome))) == 4


def test_a_surface_predicts_what_minimises_it_at_the_family_s_own_cost():
  theta = dict(E=1.7, A=400.0, B=2000.0, alpha=0.35, beta=0.37)
  dense = [int(n) for n in np.geomspace(2e4, 2e9, 3001)]
  around = plan.Around(sizes=3, spacing=1.5)
  law = plan.Surface(theta=theta)
  outcome = planned(family([1e18], sizes=dense), choose=around, optimum=law)
  N = np.array(dense, float)
  D = 1e18 / (7.0 * N**0.98)
  loss = forms.chinchilla(theta, {'N': N, 'D': D})
  assert sizes(outcome)[1] == pytest.approx(N[loss.argmin()], rel=0.01)
  assert outcome.rows[1].best == pytest.approx(N[loss.argmin()], rel=0.01)


def test_learning_rate_and_batch_follow_their_laws():
  rates = plan.Rates('moe', {'k': 0.5, 'a': 0.25})
  outcome = planned(family([1e12, 1e14]), rates=rates)
  for row in outcome.rows:
    C, train = row.one.budget, row.one.config.train
    # Source of the constants: arXiv 2507.17702, section 3.1.
    peak = row.one.config.optim.schedule.peak
    assert peak == pytest.approx(1.1576 * C**-0.1529)
    assert train.batch_size == round(0.5 * C**0.25 / LENGTH)
    assert row.one.cell.overrides['optim.schedule.peak'] == peak


def test_a_batch_that_the_floor_makes_smaller_is_noted():
  outcome = planned(rows=4096, min_steps=100)
  for row in outcome.rows:
    assert row.one.steps() >= 100
    assert 'instead of 4096' in row.one.notes[0]


def results(path, points, variant='dense', budget=1e12, role='rates'):
  """Writes an inner sweep: (rate, tokens of a batch, loss) of each run."""
  rows = [
    {
      'name': f'r{i}', 'status': 'ok', 'seed': 0, 'loss': loss,
      'tokens': 1e6, 'train_flops': budget, 'params_active': 1e5,
      'seconds': 10.0,
      'labels.variant': variant, 'labels.budget_flops': budget,
      'labels.activation_ratio': 1.0, 'labels.role': role,
      'labels.peak_lr': rate, 'labels.batch_tokens': tokens,
    }
    for i, (rate, tokens, loss) in enumerate(points)
  ]  # fmt: skip
  with open(path, 'w', newline='') as file:
    table = csv.DictWriter(file, rows[0])
    table.writeheader()
    table.writerows(rows)
  return str(path)


def bowl(best_rate, best_tokens):
  """Losses of a grid whose least is known."""
  return [
    (rate, tokens, 2.0 + np.log2(rate / best_rate) ** 2 / 50
     + np.log2(tokens / best_tokens) ** 2 / 80)
    for rate in (1e-3, 2e-3, 4e-3, 8e-3)
    for tokens in (64, 128, 256)
  ]  # fmt: skip


def test_an_inner_sweep_moves_the_laws_through_its_best(tmp_path):
  path = results(tmp_path / 'results.csv', bowl(3e-3, 140.0))
  rates = plan.Rates('moe', 'moe', measured=path)
  outcome = planned(family([1e12, 1e15]), rates=rates)
  for row in outcome.rows:
    times = row.one.budget / 1e12
    peak = row.one.config.optim.schedule.peak
    assert peak == pytest.approx(3e-3 * times**-0.1529, rel=1e-3)
    rows = 140.0 * times**0.3644 / LENGTH
    assert row.one.config.train.batch_size == round(rows)


def test_the_edge_of_an_inner_sweep_is_noted(tmp_path):
  path = results(tmp_path / 'results.csv', bowl(1e-4, 140.0))
  outcome = planned(rates=plan.Rates('moe', 'moe', measured=path))
  note = outcome.rows[0].one.notes[0]
  assert 'learning rate' in note and 'smallest' in note


def test_the_inner_sweep_is_laid_at_the_smallest_budget_and_the_best_size():
  grid = plan.RateGrid(learning_rates=(0.5, 1.0, 2.0), batches=(1.0, 2.0))
  cells = family([1e13, 1e12], ['dense', 'moe'])
  outcome = planned(cells, choose=grid, rates=plan.Rates('moe'))
  assert len(outcome.rows) == 2 * 6
  law = 1.1576 * 1e12**-0.1529
  seen = set()
  for row in outcome.rows:
    one, labels = row.one, row.one.config.labels
    assert one.budget == labels.budget_flops == 1e12
    assert labels.role == 'rates'
    assert one.size / 0.2e6 == pytest.approx(1, rel=0.13)
    assert labels.batch_tokens == one.config.train.batch_size * LENGTH
    assert labels.peak_lr == one.config.optim.schedule.peak
    factor = round(labels.peak_lr / law, 6)
    seen.add((one.variant, factor, labels.batch_tokens // (8 * LENGTH)))
  assert seen == {
    (v, f, b) for v in ('dense', 'moe') for f in (0.5, 1, 2) for b in (1, 2)
  }


def test_batches_that_round_to_one_are_run_once():
  grid = plan.RateGrid(learning_rates=(1.0,), batches=(0.5, 1.0, 2.0))
  outcome = planned(choose=grid, batch_multiple=8)
  assert len(outcome.rows) == 2
  assert 'lower batch_multiple' in outcome.dropped[0].reason


def test_laid_cells_stay_and_what_they_break_is_noted():
  cells = family(sizes=[10**4, 2 * 10**4])
  outcome = planned(cells, choose=None, min_steps=10**6)
  assert outcome.cells == cells
  assert all('below min_steps' in r.one.notes[0] for r in outcome.rows)
  text = plan.markdown('Plan', outcome)
  assert 'all sizes lie below the best one expected, 200k' in text


def test_a_cell_that_misses_its_budget_is_noted():
  one = plan_count.count(family([1e7], sizes=[10**5]), base(), 'params_active')[
    0
  ]
  broken = plan.Plan().broken(one)
  assert '1 steps of 128 tokens' in broken and 'tolerance 1 %' in broken


def test_the_gate_drops_what_does_not_fit_and_asks_once_per_program():
  asked = []

  def gate(config):
    asked.append((config.model.repeats, config.train.batch_size))
    return config.model.repeats * 16.0, 4e6

  cells = family([1e12, 1.1e12], seeds=(0, 1))
  outcome = planned(cells, memory=gate)
  assert len(asked) == len(set(asked)) < len(outcome.rows)
  assert outcome.rows and all(16 * n <= 4e6 for n in sizes(outcome))
  assert all('of 0.0; use more chips' in d.reason for d in outcome.dropped)
  assert len(outcome.rows) + len(outcome.dropped) == 2 * 2 * 4


def test_hours_are_those_of_measured_runs(tmp_path):
  path = results(tmp_path / 'results.csv', bowl(1e-3, 64.0), role='law')
  outcome = planned(speed=plan.Measured(path))
  # Every run spent 1e12 FLOPs in 10 s.
  for row in outcome.rows:
    assert row.hours == pytest.approx(row.one.spent() / 1e11 / 3600)
  text = plan.markdown('Plan', outcome, jobs=2)
  assert '20s of training with 2 cells at once, 10s of it' in text
  absent = planned(speed=plan.Measured(str(tmp_path / 'none.csv')))
  assert 'unknown: there is no' in plan.markdown('Plan', absent)


def test_hours_are_those_of_the_stated_share_of_the_peak():
  chip = plan.Chip('TPU v5p', count=2, utilisation_frac=0.5)
  for row in planned(speed=chip).rows:
    assert row.hours == pytest.approx(row.one.spent() / 459e12 / 3600)


def test_the_law_of_an_earlier_sweep_is_read_back(rows, tmp_path):
  found = analysis.analyse(rows(), draws=0, huber_starts=1)
  path = tmp_path / 'fits.json'
  path.write_text(json.dumps(record.record(found)))
  own = plan.Fitted(str(path))
  law = found.allocations['moe 1/4']['size'].fit.theta
  best = own('moe 1/4', 1e14, forms.SIX)
  assert best == pytest.approx(law['k'] * 1e14 ** law['a'])
  lent = plan.Fitted(str(path), variant='dense')
  assert lent('moe 1/4', 1e14, forms.SIX) == own('dense', 1e14, forms.SIX)
  with pytest.raises(ValueError, match="no allocation of 'moe 1/2'.*dense"):
    own('moe 1/2', 1e14, forms.SIX)
  with pytest.raises(ValueError, match='counts N as'):
    plan.Fitted(str(path), size='params_total')('dense', 1e14, forms.SIX)
  fit_file = tmp_path / 'fit.json'
  fits = [{'theta': found.surfaces['dense'][0].theta}]
  fit_file.write_text(json.dumps({'form': 'chinchilla', 'fits': fits}))
  surface = plan.Fitted(str(fit_file))('any', 1e14, forms.SIX)
  assert surface == pytest.approx(own('dense', 1e14, forms.SIX), rel=0.3)


BAD_FIELDS = {
  'spacing': ('Around', dict(spacing=-2.0), 'spacing=-2.0 .*above 1'),
  'few sizes': ('Around', dict(sizes=2), 'sizes=2 fix no parabola'),
  'factors': ('RateGrid', dict(batches=(1.0, 1.0)), 'different factors'),
  'surface': (
    'Surface',
    dict(theta=dict(E=1.0, A=4.0, B=5.0, alpha=-0.3, beta=0.3)),
    'no interior optimum',
  ),
  'no surface': ('Surface', dict(theta='refitt'), "did you mean 'refit'"),
  'power': ('Power', dict(k=1.0, a=1.2), 'a between 0 and 1'),
  'rates': ('Rates', dict(learning_rate='mo'), "did you mean 'moe'"),
  'law': ('Rates', dict(batch_tokens={'k': -1, 'a': 0.3}), 'above 0'),
  'chip': ('Chip', dict(device='TPU v9'), 'no known peak'),
  'share': ('Chip', dict(device='TPU v5p', utilisation_frac=4), 'at most 1'),
  'tolerance': ('Plan', dict(tolerance_frac=0.0), 'between 0 and 1'),
  'floor': ('Plan', dict(min_steps=0), 'whole number of at least 1'),
  'size': ('Plan', dict(size='params'), 'must be one of params_active'),
  'no law': ('Plan', dict(choose=common.node('scaling.plan.Around')), 'a law'),
}


@pytest.mark.parametrize('case', BAD_FIELDS)
def test_a_plan_that_makes_no_sense_is_refused_when_it_is_built(case):
  kind, fields, message = BAD_FIELDS[case]
  with pytest.raises(ConfigError, match=message):
    build(common.node(f'scaling.plan.{kind}', **fields))


def test_what_leaves_no_cell_is_refused_with_the_first_reason():
  with pytest.raises(ValueError, match='no cell of 31 is left.*no size of the'):
    planned(optimum=plan.Power(k=1e3, a=0.9))
  with pytest.raises(ValueError, match='below min_steps=100; raise the budget'):
    planned(family([1e8]), optimum=plan.Power(k=10.0, a=0.5), min_steps=100)


def test_a_family_too_coarse_for_the_spacing_loses_targets_by_name():
  outcome = planned(choose=plan.Around(sizes=5, spacing=1.05))
  assert outcome.dropped
  reasons = ' '.join(d.reason for d in outcome.dropped)
  assert 'the family is too coarse' in reasons or 'no size of' in reasons
  assert all(d.name.startswith('dense C=1.0e+12 N=') for d in outcome.dropped)


def test_an_inner_sweep_that_is_absent_is_refused(tmp_path):
  with pytest.raises(ValueError, match='run the inner sweep first'):
    planned(rates=plan.Rates(measured=str(tmp_path / 'none.csv')))
  path = results(tmp_path / 'results.csv', bowl(1e-3, 64.0), role='law')
  with pytest.raises(ValueError, match="labels.role is 'rates'"):
    planned(rates=plan.Rates(measured=path))


def test_cells_without_a_budget_cannot_be_chosen_among():
  cells = hyper.cells([{'train.steps': 5, 'train.budget_flops': None}])
  with pytest.raises(ValueError, match='has config.train.steps=5 and no'):
    planned(cells)


@pytest.fixture
def command(capsys):
  def run(*words):
    with pytest.raises(SystemExit) as ended:
      main.main(['moejax', *words])
    return types.SimpleNamespace(code=ended.value.code, **_told(capsys))

  return run


def _told(capsys):
  told = capsys.readouterr()
  return {'out': told.out, 'err': told.err}


def test_a_dry_run_is_told_for_sweeps_only(command):
  found = command('--config=configs/tiny.py', '--dry-run')
  assert found.code == 2 and 'has no get_hyper' in found.err
  found = command('--mode=generate', '--workdir=x', '--dry-run')
  assert found.code == 2 and '--dry-run is for a sweep' in found.err


def test_the_gate_compiles_for_the_topology_that_it_is_given(monkeypatch):
  memory = types.SimpleNamespace(total=3.0, limit=2.0)
  asked = []

  def check(config, topology):
    asked.append(topology)
    return types.SimpleNamespace(memory=memory)

  fake = types.SimpleNamespace(check=check)
  monkeypatch.setitem(sys.modules, 'moejax.aot', fake)
  monkeypatch.setattr(moejax, 'aot', fake, raising=False)
  assert plan.Compiled('v5p:2x2x1')(base()) == (3.0, 2.0)
  assert plan.Compiled(None)(base()) is None and asked == ['v5p:2x2x1']
  assert not planned(memory=plan.Compiled(None)).dropped
