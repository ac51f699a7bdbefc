"""Programs for machines that are not here: compiled, and what they cost.

Nothing here imports jax: both compilers want a process of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from ml_collections import ConfigDict

from moejax import config_io
from moejax.aot import topology
from moejax.aot.report import Memory, Report, from_dict

__all__ = ['Memory', 'Report', 'check']


def check(
  config: ConfigDict, topology_name: str, timeout_s: float | None = 1800
) -> Report:
  """Compiles the training step of a config for a topology.

  A process of its own does it, with no accelerator. Memory per device and its
  limit are `report.memory.total` and `report.memory.limit`, in bytes.

  Args:
    config: the whole config.
    topology_name: such as 'v5p:8x8x16'; see `topology.KNOWN`.
    timeout_s: after which compilation is given up; None for never.

  Raises:
    ValueError: the topology is unknown, its compiler is missing, the config
      cannot run there, or compilation took too long.
  """
  topology.check_compiler(topology.find(topology_name))
  request = {'config': config_io.plain(config), 'topology': topology_name}
  try:
    done = subprocess.run(
      [sys.executable, '-m', 'moejax.aot'],
      input=json.dumps(request),
      capture_output=True,
      text=True,
      timeout=timeout_s,
      env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    )
  except subprocess.TimeoutExpired as error:
    raise ValueError(
      f'compiling for {topology_name} took longer than {timeout_s:.0f} s; try '
      'fewer repeats of the pattern (they cost nothing) or a smaller model.'
    ) from error
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no word']
    raise RuntimeError(
      f'the compiler for {topology_name} ended with {done.returncode}: '
      + '\n'.join(lines[-20:])
    )
  answer = json.loads(done.stdout.splitlines()[-1])
  if 'error' in answer:
    raise ValueError(answer['error'])
  return from_dict(answer)
