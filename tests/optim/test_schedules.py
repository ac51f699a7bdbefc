"""Schedules against their closed forms, and the numbers they refuse."""

import math

import numpy as np
import pytest

from moejax.optim import schedules

STEPS = np.arange(0, 120)


def _values(schedule):
  return np.array([float(schedule(int(step))) for step in STEPS])


def _ramp(peak, warmup_steps):
  return peak * (STEPS + 1) / (warmup_steps + 1)


def test_cosine_is_half_a_cosine_after_a_ramp():
  schedule = schedules.cosine(
    3e-3, total_steps=100, warmup_steps=10, final_frac=0.1
  )
  t = np.clip((STEPS - 10) / 90, 0, 1)
  fall = 3e-4 + (3e-3 - 3e-4) * 0.5 * (1 + np.cos(np.pi * t))
  want = np.where(STEPS < 10, _ramp(3e-3, 10), fall)
  np.testing.assert_allclose(_values(schedule), want, rtol=1e-5)


@pytest.mark.parametrize('shape', ['sqrt', 'linear'])
def test_warmup_stable_decay_is_flat_until_its_fall(shape):
  schedule = schedules.warmup_stable_decay(
    2e-3, 100, warmup_steps=5, decay_frac=0.2, shape=shape, final_frac=0.05
  )
  t = np.clip((STEPS - 80) / 20, 0, 1)
  height = 1 - (np.sqrt(t) if shape == 'sqrt' else t)
  fall = 1e-4 + (2e-3 - 1e-4) * height
  want = np.where(STEPS < 5, _ramp(2e-3, 5), fall)
  np.testing.assert_allclose(_values(schedule), want, rtol=1e-5)


def test_warmup_stable_decay_stays_at_its_final_rate_to_the_end():
  schedule = schedules.warmup_stable_decay(
    2e-3,
    100,
    warmup_steps=5,
    decay_frac=0.2,
    shape='linear',
    final_frac=0.1,
    constant_frac=0.3,
  )
  t = np.clip((STEPS - 50) / 20, 0, 1)
  fall = 2e-3 - 1.8e-3 * t
  want = np.where(STEPS < 5, _ramp(2e-3, 5), fall)
  np.testing.assert_allclose(_values(schedule), want, rtol=1e-5)


def test_constant_needs_no_total():
  want = np.where(STEPS < 4, _ramp(1e-2, 4), 1e-2)
  schedule = schedules.constant(1e-2, warmup_steps=4)
  np.testing.assert_allclose(_values(schedule), want, rtol=1e-6)


@pytest.mark.parametrize('name', ['cosine', 'constant'])
def test_no_warmup_starts_at_the_peak(name):
  schedule = getattr(schedules, name)(1e-2, total_steps=10)
  assert float(schedule(0)) == pytest.approx(1e-2)


@pytest.mark.parametrize(
  'function, fields, field',
  [
    (schedules.cosine, {'peak': math.nan, 'total_steps': 9}, 'peak=nan'),
    (schedules.cosine, {'peak': -1.0, 'total_steps': 9}, 'peak=-1.0'),
    (schedules.constant, {'peak': math.inf}, 'peak=inf'),
    (schedules.cosine, {'peak': 1.0, 'total_steps': 0}, 'total_steps=0'),
    (schedules.cosine, {'peak': 1.0, 'total_steps': 2.5}, 'total_steps=2.5'),
    (
      schedules.cosine,
      {'peak': 1.0, 'total_steps': 9, 'warmup_steps': 10},
      'warmup_steps=10 exceeds total_steps=9',
    ),
    (
      schedules.cosine,
      {'peak': 1.0, 'total_steps': 9, 'final_frac': 1.5},
      'final_frac=1.5',
    ),
    (
      schedules.warmup_stable_decay,
      {'peak': 1.0, 'total_steps': 9, 'decay_frac': math.nan},
      'decay_frac=nan',
    ),
    (
      schedules.warmup_stable_decay,
      {'peak': 1.0, 'total_steps': 10, 'warmup_steps': 9, 'decay_frac': 0.5},
      'do not fit',
    ),
    (
      schedules.warmup_stable_decay,
      {'peak': 1.0, 'total_steps': 10, 'decay_frac': 0.6, 'constant_frac': 0.5},
      r'constant_frac=0.5 \(5 steps\) do not fit',
    ),
    (
      schedules.warmup_stable_decay,
      {'peak': 1.0, 'total_steps': 10, 'shape': 'exp'},
      "shape='exp'",
    ),
  ],
)
def test_impossible_numbers_are_refused_by_name(function, fields, field):
  with pytest.raises(ValueError, match=field):
    function(**fields)
