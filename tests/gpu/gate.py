"""What the gates of GPU kernels share: when they run, and what they read."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent
MOST_REGISTERS, SHARED_BYTES = 255, 232_448  # of an H100

MARKS = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('jax_cuda12_plugin') is None,
    reason="needs the CUDA plugin: pip install -e '.[aot-gpu]'",
  ),
]


def compiled(script, timeout_s=900):
  """What a script of this folder prints: one JSON value a line."""
  done = subprocess.run(
    [sys.executable, FOLDER / script],
    capture_output=True,
    text=True,
    timeout=timeout_s,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return [json.loads(line) for line in done.stdout.splitlines()]
