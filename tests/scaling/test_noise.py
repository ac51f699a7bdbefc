import dataclasses

import numpy as np
import pytest

from moejax.scaling import isoflop, noise, redraw, resample, runs

SEEDS = 3


def _parabolas(rng, shared, own, count):
  """Parabolas of four sizes whose cells err together and seeds apart."""
  sizes = np.geomspace(1e5, 1e7, 4)
  out = []
  for place in range(count):
    exact = 2.5 + 0.3 * np.log10(sizes / 1e6) ** 2
    exact = exact * np.exp(shared * rng.standard_normal(4))
    group = [
      runs.Run(
        f'{s}',
        'dense',
        1e15 + place,
        1.0,
        n,
        1e9,
        1e15,
        loss * np.exp(own * rng.standard_normal()),
        s,
        {},
      )  # fmt: skip
      for n, loss in zip(sizes, exact, strict=True)
      for s in range(SEEDS)
    ]
    group = [dataclasses.replace(r, tokens=1e15 / r.size) for r in group]
    out.append(isoflop.parabola(group))
  return out


@pytest.mark.parametrize('shared, own', [(0.01, 0.004), (0.0, 0.01)])
def test_noise_of_cells_and_of_seeds_are_told_apart(shared, own):
  fitted = _parabolas(np.random.default_rng(0), shared, own, 300)
  found = redraw.pooled(fitted)
  assert found.shared_freedom == 300
  assert found.own_freedom == 300 * 4 * (SEEDS - 1)
  assert np.std(found.own) == pytest.approx(own, rel=0.05)
  assert np.std(found.shared) == pytest.approx(shared, rel=0.1, abs=0.1 * own)


def test_seeds_of_a_cell_share_its_error_in_every_draw():
  found = noise.Noise(np.array([-0.1, 0.1]), np.zeros(0), 9, 0)
  of = np.repeat(np.arange(4), SEEDS)
  drawn = found.drawn(np.random.default_rng(0), of, 50)
  by_cell = drawn.reshape(50, 4, SEEDS)
  np.testing.assert_array_equal(by_cell, by_cell[:, :, :1].repeat(SEEDS, 2))
  assert len(np.unique(by_cell[0, :, 0])) == 2


@pytest.mark.parametrize('shared, own', [(0.005, 0.002), (0.0, 0.005)])
def test_intervals_of_vertices_cover_whichever_noise_there_is(shared, own):
  rng = np.random.default_rng(1)
  inside = []
  for trial in range(100):
    fitted = _parabolas(rng, shared, own, 4)
    for one in redraw.with_draws(fitted, draws=200, seed=trial):
      near = resample.interval(one.draws.loss)
      inside.append(near.low80 <= 2.5 <= near.high80)
  # Four vertices of a trial share one pool: count trials, not vertices.
  assert abs(np.mean(inside) - 0.8) < 3 * np.sqrt(0.8 * 0.2 / 100)


def test_seed_noise_is_the_deviation_between_seeds(rows):
  single, _ = runs.parse(rows())
  assert noise.seed_noise(single) is None
  many, _ = runs.parse(rows(noise=0.01, seeds=8))
  found = noise.seed_noise(many)
  assert found.freedom == 36 * 7 and found.cells == 36
  assert found.deviation == pytest.approx(0.01, rel=4 / np.sqrt(2 * 36 * 7))
