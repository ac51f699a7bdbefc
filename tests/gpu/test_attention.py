"""Attention compiles for an H100 to calls of cuDNN, without a GPU."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('jax_cuda12_plugin') is None,
    reason="needs the CUDA plugin: pip install -e '.[aot-gpu]'",
  ),
]


def test_it_calls_the_library_for_what_that_takes():
  script = pathlib.Path(__file__).parent / 'compile_attention.py'
  done = subprocess.run(
    [sys.executable, script], capture_output=True, text=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  assert found.pop('f32')['calls'] == 0
  assert len(found) == 5 and {'mesh of 1', 'mesh of 4'} <= set(found)
  for name, case in found.items():
    # Forward; and again for the gradient, with its own.
    assert case['calls'] >= 2, name
