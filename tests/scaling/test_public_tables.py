"""Published coefficients from the public tables of the runs behind them.

The tables are not part of this repository: `MOEJAX_TABLES` is the folder that
holds them. They come from the repositories that the tests name.
"""

import csv
import os
import pathlib

import numpy as np
import pytest

from moejax.scaling import fit, forms

FOLDER = os.environ.get('MOEJAX_TABLES')


def rows(name):
  if FOLDER is None or not (pathlib.Path(FOLDER) / name).is_file():
    pytest.skip(f'set MOEJAX_TABLES to the folder that holds {name}')
  with open(pathlib.Path(FOLDER) / name, newline='', encoding='utf-8') as f:
    return list(csv.DictReader(f))


def column(chosen, name):
  return np.array([float(row[name] or 'nan') for row in chosen])


def over_training(dataset):
  """All runs of a dataset as (M, C, loss), and which five are fitted."""
  found = rows('gadre_104_models_flat.csv')
  found = [r for r in found if r['dataset'] == dataset]
  N, D = column(found, 'N'), column(found, 'D')
  times = column(found, 'chinchilla_mult')
  small = (N < 5e8) & ((times == 1) | ((N < 2e7) & (times == 16)))
  z = {'M': D / N, 'C': 6 * N * D}
  return z, column(found, 'loss_c4_val'), small, N > 1e9


@pytest.mark.parametrize(
  'dataset,theta',
  [
    ('c4_original', dict(E=1.508, a=141.3, b=189.5, eta=0.1212)),
    ('rpj', dict(E=1.837, a=212.2, b=366.7, eta=0.1364)),
    ('rw_original', dict(E=1.734, a=157.1, b=246.2, eta=0.1272)),
  ],
)
def test_five_small_runs_give_the_over_training_law(dataset, theta):
  """mlfoundations/scaling, arXiv 2403.08540 table 2."""
  z, loss, small, _ = over_training(dataset)
  assert small.sum() == 5
  seen = {name: values[small] for name, values in z.items()}
  # The source minimises absolute errors.
  found = fit.varpro(
    forms.over_training, seen, loss[small], weights=loss[small] ** 2
  )
  for name, value in theta.items():
    assert found.theta[name] == pytest.approx(value, rel=0.01), name


def test_the_over_training_law_predicts_runs_of_300_times_the_compute():
  z, loss, small, large = over_training('rpj')
  seen = {name: values[small] for name, values in z.items()}
  found = fit.varpro(
    forms.over_training, seen, loss[small], weights=loss[small] ** 2
  )
  errors = 100 * np.abs(found.predict(z) / loss - 1)
  far = {round(m): e for m, e in zip(z['M'][large], errors[large], strict=True)}
  assert errors[large & (z['M'] > 600)] == pytest.approx(0.7103, abs=0.005)
  sizes = z['C'] / (6 * z['M'])
  biggest = large & (np.sqrt(sizes) > 6e9)
  assert errors[biggest] == pytest.approx(0.7320, abs=0.005), far


@pytest.mark.parametrize(
  'dataset,exponents',
  [
    ('rw', (0.835, 0.706, 0.602, 0.571, 0.497)),
    ('owt2', (0.864, 0.699, 0.603, 0.574, 0.518)),
  ],
)
def test_five_corrections_lead_from_one_allocation_law_to_the_other(
  dataset, exponents
):
  """formll/resolving-scaling-law-discrepancies, arXiv 2406.19146."""
  steps = [
    ('base', 'long', 'kaplan', 'kaplan'),
    ('base', 'long', 'kaplan', 'standard'),
    ('base', 'short', 'kaplan', 'standard'),
    ('base', 'short', 'chinchilla', 'standard'),
    ('tuned', 'short', 'const', 'standard'),
  ]
  found = rows('porian_optimal_pairs_flat.csv')
  names = ('hparams', 'warmup', 'decay', 'param_count')
  for step, exponent in zip(steps, exponents, strict=True):
    chosen = [
      r
      for r in found
      if r['dataset'] == dataset and tuple(r[n] for n in names) == step
    ]
    spread, size = column(chosen, 'n_star_std'), column(chosen, 'n')
    good = np.isfinite(spread) & np.isfinite(size)
    law = fit.varpro(
      forms.allocation,
      {'C': column(chosen, 'flops')[good]},
      size[good],
      weights=spread[good] ** -2,
    )
    assert law.theta['a'] == pytest.approx(exponent, abs=0.0015), step


@pytest.mark.parametrize(
  'router,theta',
  [
    ('S-Base', (-0.0835, -0.119, 0.0102, 1.116, 1.875, 255)),
    ('RL-R', (-0.0829, -0.122, 0.0112, 1.106, 1.36, 562)),
    ('Hash', (-0.0874, -0.1376, 0.0126, 1.159, 3.98, 458)),
  ],
)
def test_the_routed_law_is_that_of_its_runs_and_too_hopeful_beyond(
  router, theta
):
  """google-deepmind/scaling_laws_for_routing, arXiv 2202.01169."""
  found = [
    r
    for r in rows('clark_final_223.csv')
    if r['router_type'] == router
    and r['k'] == '1'
    and r['routing_frequency'] == '0.5'
  ]
  z = {
    'N': column(found, 'dense_parameter_count'),
    'E': column(found, 'num_experts'),
  }
  loss = column(found, 'loss_validation')
  law = fit.varpro(forms.routed, z, loss)
  mine = dict(law.theta, K=np.log10(law.theta['K']))
  for name, value in zip(
    ('a', 'b', 'c', 'K', 'E_start', 'E_max'), theta, strict=True
  ):
    assert mine[name] == pytest.approx(value, rel=0.02), name
  small = z['N'] < 1e9
  seen = {name: values[small] for name, values in z.items()}
  law = fit.varpro(forms.routed, seen, loss[small])
  error = law.predict(z)[~small] / loss[~small] - 1
  assert (error < 0).all()
  assert error.mean() == pytest.approx(-0.0205, abs=0.0015)


def test_a_pinned_asymptote_gives_the_frontier_of_a_sparse_family():
  """marin-community/marin, experiments/grug/moe: 1.6 + 95.18 C^-0.0941."""
  found = rows('marin_grug_moe_v16_optima.csv')
  law = fit.varpro(
    forms.compute_frontier,
    {'C': column(found, 'C')},
    column(found, 'paloma_macro'),
    pinned={'E': 1.6},
  )
  assert law.theta['b'] == pytest.approx(0.0941, rel=0.01)
  assert law.predict({'C': np.array([1e21])})[0] == pytest.approx(
    2.606, abs=0.003
  )
