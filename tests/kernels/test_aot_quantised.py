"""Quantised grouped products stay sparse on TPUs that are not here."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / 'aot_quantised.py'

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="needs libtpu: pip install -e '.[aot]'",
  ),
]


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2', 'v5p:2x2x1'])
def test_flops_are_within_5_percent_of_ideal(topology):
  done = subprocess.run(
    [sys.executable, SCRIPT, topology],
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  ratios = json.loads(done.stdout.splitlines()[-1])
  assert len(ratios) == 3
  assert all(0.99 < ratio < 1.05 for ratio in ratios.values()), ratios
