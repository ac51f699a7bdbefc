import numpy as np
import pytest

from moejax.scaling import ahead, analysis, claims, forms, noise


@pytest.fixture(scope='module')
def seeded(rows):
  table = rows(noise=0.001, seeds=3, sizes=5, variants=('dense', 'moe 1/16'))
  return analysis.analyse(table, draws=40, huber_starts=1)


def test_the_loss_at_ten_times_the_budget_is_that_of_the_true_law(
  seeded, theta_of
):
  choice = seeded.choices[0]
  assert [o.variant for o in choice.order] == ['moe 1/16', 'dense']
  assert choice.separated
  for one in choice.order:
    size, tokens, loss = forms.optimum(theta_of(one.variant), [1e15])
    assert one.by == ahead.SURFACE and one.flops == 1e15
    # The noise of 45 runs, carried over a decade.
    assert one.loss == pytest.approx(float(loss[0]), rel=0.02)
    assert one.size == pytest.approx(float(size[0]), rel=0.25)
    assert one.size * one.tokens == pytest.approx(1e15 / 6, rel=1e-6)
    near = one.intervals[2]
    assert near.low95 < one.loss < near.high95


def test_beyond_the_sampled_range_the_data_are_said_not_to_support_it(seeded):
  ten, hundred = seeded.choices
  # The budgets span one decade.
  assert [o.beyond for o in ten.order] == pytest.approx([1.0, 1.0])
  assert all('2.00 times the sampled range' in o.doubts[0]
             for o in hundred.order)  # fmt: skip
  text = claims.next_steps(seeded)[1]
  assert 'The data do not support this number' in text
  assert 'not searched' in text


def test_equal_variants_are_not_separated():
  one, two = (
    ahead.Ahead(
      name, 10, 1e15, ahead.SURFACE, 1e6, 1e8, 2.0, (None,) * 3, (None,) * 3,
      0.5, None, None, 2 + 0.01 * np.random.default_rng(s).standard_normal(300),
      (),
    )
    for s, name in enumerate('ab')
  )  # fmt: skip
  assert ahead._share([one, two]) == pytest.approx(0.5, abs=0.1)


def test_without_a_surface_the_vertices_decide(rows):
  found = analysis.analyse(
    rows(noise=0.0, variants=('dense',)), draws=0, huber_starts=1
  )
  known = analysis._known(found, 'dense')
  by_surface = ahead.look_ahead([known])[0].order[0]
  (choice, _) = ahead.look_ahead(
    [ahead.Known(**{**vars(known), 'surface': None})]
  )
  one = choice.order[0]
  assert one.by == ahead.VERTICES
  assert one.size == pytest.approx(by_surface.other[0])
  assert one.size == pytest.approx(by_surface.size, rel=0.1)
  assert 'no interval could be computed' in one.doubts


def test_held_out_cells_are_means_of_their_seeds(seeded):
  for held in seeded.held_out:
    of = noise.cells(held.runs)
    for cell in range(5):
      losses = [r.loss for r, c in zip(held.runs, of, strict=True) if c == cell]
      assert len(losses) == 3 == held.seeds[cell]
      assert held.actual[cell] == pytest.approx(np.mean(losses))
    assert held.noise(0.01) == pytest.approx(
      0.01 / np.sqrt(3) * np.sqrt(2 / np.pi)
    )
