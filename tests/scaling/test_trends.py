import numpy as np
import pytest

from moejax.scaling import fit, forms, leverage_law, trends
from moejax.scaling.leverage import Leverage

TRUE = dict(
  one=1.0, a=0.5, d=-0.08, gamma=0.0, beta=0.0, A_start=0.01, A_max=1e17
)  # fmt: skip
BUDGETS = (1e11, 3e11, 1e12, 3e12)


def _leverages(value, noise=0.0, far=(), grains=(np.nan,), seed=0):
  """Leverages `value(ratio, flops, grain)` with 200 draws about each."""
  rng = np.random.default_rng(seed)
  out = []
  for ratio in (1.0, 1 / 4, 1 / 16, 1 / 64):
    for grain in grains if ratio < 1 else (np.nan,):
      for flops in BUDGETS:
        exact = value(ratio, flops, grain) if ratio < 1 else 1.0
        found = exact * np.exp(noise * rng.standard_normal())
        drawn = found * np.exp(noise * rng.standard_normal(200))
        notes = ('extrapolated 2 times',) if flops in far else ()
        out.append(
          Leverage(
            'dense' if ratio == 1 else f'{ratio:g} {grain:g}',
            flops,
            ratio,
            2.0,
            found,
            found * flops,
            None,
            notes,
            flops,
            grain,
            drawn,
          )  # fmt: skip
        )
  return out


def _of(found, axis, where='all'):
  (one,) = [t for t in found if (t.axis, t.where) == (axis, where)]
  return one


def test_slopes_are_the_exponents_that_leverage_has():
  found = trends.trends(
    _leverages(
      lambda A, C, G: 3 * A**-0.2 * (C / 1e11) ** 0.1 * G**0.05,
      noise=1e-6,
      grains=(2.0, 4.0),
    ),
    'dense',
  )
  for axis, slope in (
    (trends.COMPUTE, 0.1),
    (trends.ACTIVATION, -0.2),
    (trends.GRANULARITY, 0.05),
  ):
    one = _of(found, axis)
    assert one.slope == pytest.approx(slope, abs=1e-4)
    assert one.sign == np.sign(slope) and one.inside is None
  assert _of(found, trends.COMPUTE, '0.25 2').points == 4
  assert _of(found, trends.COMPUTE).points == 24


def test_noise_alone_is_no_trend():
  flat = [
    _of(
      trends.trends(_leverages(lambda A, C, G: 2.0, 0.05, seed=s), 'dense'),
      trends.COMPUTE,
    )
    for s in range(60)
  ]
  # 3 of 60 intervals are expected to miss; the binomial deviation is 1.7.
  assert 0 < sum(t.sign != 0 for t in flat) <= 8
  assert {t.lost for t in flat} == {0.0}


def test_the_slope_without_extrapolated_leverages_stands_beside():
  def bent(A, C, G):
    return 2.0 * (4.0 if BUDGETS[-1] == C else 1.0)

  found = trends.trends(_leverages(bent, 1e-6, far=BUDGETS[-1:]), 'dense')
  one = _of(found, trends.COMPUTE)
  assert one.slope > 0.1 and one.extrapolated == 3
  assert one.inside[0] == pytest.approx(0.0, abs=1e-4)


def test_draws_that_dense_never_reaches_are_counted_as_lost():
  of = _leverages(lambda A, C, G: 2.0, 0.01)
  of[-1].draws[:50] = np.inf
  one = _of(trends.trends(of, 'dense'), trends.COMPUTE)
  assert one.lost == 0.25 and one.interval is not None


def test_the_joint_law_predicts_the_largest_budget_unseen():
  def value(A, C, G):
    at = {'A': np.array([A]), 'C': np.array([C]), 'G': np.array([1.0])}
    return float(forms.efficiency_leverage(TRUE, at)[0])

  of = _leverages(value, 0.0)
  law = leverage_law.leverage_law(of, 'dense')
  assert law.held_out.sum() == 3
  measured = [l.value for l in law.points]
  np.testing.assert_allclose(law.predicted, measured, rtol=1e-3)
  assert law.fit.theta['d'] == pytest.approx(TRUE['d'], abs=1e-3)
  assert {'gamma', 'beta', 'A_max'} <= set(law.fit.pinned)


def test_two_budgets_are_no_joint_law():
  of = [l for l in _leverages(lambda A, C, G: 2.0) if l.budget < 1e12]
  with pytest.raises(fit.FitRefused, match='4 activation ratios .* 2 budgets'):
    leverage_law.leverage_law(of, 'dense')
