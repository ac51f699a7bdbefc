import numpy as np
import pytest

from moejax.scaling import isoflop, redraw, resample, runs


def _group(sizes, losses, flops=1e15, variant='dense'):
  return [
    runs.Run(
      f'{n:.0f}', variant, flops, 1.0, n, flops / (6 * n), flops, loss, 0, {}
    )
    for n, loss in zip(sizes, losses, strict=True)
  ]


def _quadratic(sizes, vertex, least=2.5, curvature=0.3):
  return least + curvature * np.log10(np.asarray(sizes) / vertex) ** 2


def test_an_exact_quadratic_gives_its_vertex_exactly():
  sizes = np.geomspace(1e5, 1e7, 5)
  found = isoflop.parabola(_group(sizes, _quadratic(sizes, 8e5)))
  assert found.size == pytest.approx(8e5, rel=1e-9)
  assert found.loss == pytest.approx(2.5, rel=1e-12)
  assert found.tokens == pytest.approx(1e15 / (6 * 8e5), rel=1e-9)
  assert found.flags == () and found.usable


def test_the_flat_band_ends_a_thousandth_above_the_least_loss():
  sizes = np.geomspace(1e5, 1e7, 5)
  found = isoflop.parabola(_group(sizes, _quadratic(sizes, 8e5)))
  np.testing.assert_allclose(
    found.curve(np.array(found.flat)), 2.5 * 1.001, rtol=1e-12
  )
  assert found.flat[0] < found.size < found.flat[1]


def test_a_vertex_beyond_the_sizes_is_flagged_and_not_extrapolated():
  sizes = np.geomspace(1e5, 1e6, 4)
  found = isoflop.parabola(_group(sizes, _quadratic(sizes, 3e6)))
  assert found.flags == (isoflop.OUTSIDE,) and not found.usable
  assert found.size == pytest.approx(1e6)
  assert found.loss == pytest.approx(_quadratic([1e6], 3e6)[0], rel=1e-9)
  assert found.flat is None


@pytest.mark.parametrize('curvature', [-0.3, 0.0])
def test_a_curve_without_a_minimum_is_flagged(curvature):
  sizes = np.geomspace(1e5, 1e7, 5)
  losses = _quadratic(sizes, 8e5, curvature=curvature)
  found = isoflop.parabola(_group(sizes, losses))
  assert isoflop.CONCAVE in found.flags and not found.usable
  assert found.loss == pytest.approx(losses.min(), rel=1e-9)


def test_three_sizes_are_flagged_and_two_are_not_fitted():
  sizes = np.geomspace(1e5, 1e7, 3)
  three = isoflop.parabola(_group(sizes, _quadratic(sizes, 8e5)))
  assert three.flags == (isoflop.FEW,) and three.usable
  two = isoflop.parabola(_group(sizes[:2], [3.0, 2.9]))
  assert two.flags == (isoflop.UNFITTED,) and two.coefficients is None
  assert (two.size, two.loss) == (sizes[1], 2.9)
  # Repeats of a size are no further size.
  repeated = isoflop.parabola(_group([1e5, 1e5, 1e6, 1e6], [3, 3, 2.9, 2.9]))
  assert repeated.flags == (isoflop.UNFITTED,)


def test_pooled_residuals_have_the_variance_of_the_noise():
  rng = np.random.default_rng(0)
  sizes = np.geomspace(1e5, 1e7, 4)
  fitted = []
  for budget in range(400):
    noise = np.exp(0.01 * rng.standard_normal(4))
    losses = _quadratic(sizes, 1e6) * noise
    fitted.append(isoflop.parabola(_group(sizes, losses, 1e15 + budget)))
  assert redraw.pooled(fitted).shared.std() == pytest.approx(0.01, rel=0.08)


def test_bootstrap_intervals_of_vertices_cover_the_truth():
  rng = np.random.default_rng(1)
  sizes = np.geomspace(2e5, 5e6, 5)
  inside = []
  for trial in range(100):
    fitted = []
    for budget in range(3):
      noise = np.exp(0.005 * rng.standard_normal(5))
      losses = _quadratic(sizes, 1e6) * noise
      fitted.append(isoflop.parabola(_group(sizes, losses, 1e15 + budget)))
    for one in redraw.with_draws(fitted, draws=200, seed=trial):
      near = resample.interval(one.draws.loss)
      inside.append(near.low80 <= 2.5 <= near.high80)
  # Three vertices of a trial share one pool: count trials, not vertices.
  assert abs(np.mean(inside) - 0.8) < 3 * np.sqrt(0.8 * 0.2 / 100)


def test_draws_that_leave_the_sizes_stop_at_their_edge():
  rng = np.random.default_rng(0)
  sizes = np.geomspace(1e5, 1e6, 5)
  losses = _quadratic(sizes, 9.5e5) * np.exp(0.01 * rng.standard_normal(5))
  (found,) = redraw.with_draws([isoflop.parabola(_group(sizes, losses))])
  assert 0 < found.draws.interior.mean() < 1
  assert found.draws.size.min() >= sizes[0] * (1 - 1e-12)
  assert found.draws.size.max() <= sizes[-1] * (1 + 1e-12)


def test_groups_are_by_variant_and_budget(rows):
  good, _ = runs.parse(rows())
  found = isoflop.parabolas(good)
  keys = [(p.variant, p.budget) for p in found]
  assert len(set(keys)) == len(keys) == 9
  assert all(len(p.runs) == 4 for p in found)
