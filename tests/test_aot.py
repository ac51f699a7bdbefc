"""The training step compiles for TPUs that are not here."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / 'aot_step.py'

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="needs libtpu: pip install -e '.[aot]'",
  ),
]


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2', 'v5p:2x2x1'])
@pytest.mark.parametrize('dispatch', ['Sort', 'Einsum'])
def test_the_step_compiles_over_data_and_expert_axes(topology, dispatch):
  done = subprocess.run(
    [sys.executable, SCRIPT, topology, dispatch],
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['platform'] == 'tpu'
  assert found['flops'] > 0
  # A v5e chip has 16 GB; this tiny step takes a thousandth of it.
  assert found['temporary_bytes'] < 64 * 2**20
