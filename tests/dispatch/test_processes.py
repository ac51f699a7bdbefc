"""Two processes of two devices equal one of four."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.dispatch.test_exchange import DEFAULTS, compiled, label, load, mesh

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize('dispatcher', DEFAULTS, ids=label)
def test_two_processes_of_two_devices_equal_one_of_four(dispatcher, tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  script = ROOT / 'tests' / 'dispatch' / 'one_of_two.py'
  kind, path = type(dispatcher).__name__, tmp_path / 'out.npz'
  env = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  processes = [
    subprocess.Popen(
      [sys.executable, script, str(i), address, kind, path],
      env=env,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  try:
    for process in processes:
      _, errors = process.communicate(timeout=240)
      assert process.returncode == 0, errors[-2000:]
  finally:
    for process in processes:
      process.kill()
  _, call = compiled(dispatcher, mesh(1, 4), 8)
  y, gradients, _ = call(*load('one_expert', 8))
  want, got = jax.tree.leaves((y, gradients)), np.load(path)
  assert len(want) == len(got.files) == 6
  for a, name in zip(want, got.files, strict=True):
    np.testing.assert_allclose(got[name], a, rtol=1e-5, atol=1e-6)
