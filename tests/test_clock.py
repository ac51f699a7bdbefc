"""Durations in words."""

import pytest

from moejax import clock


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(-1, '0s'), (59.4, '59s'), (59.6, '1m00s'), (80, '1m20s'), (7530, '2h05m')],
)
def test_durations_are_short(seconds, text):
  assert clock.duration(seconds) == text
