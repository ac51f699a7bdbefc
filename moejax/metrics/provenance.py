"""Where a number came from: commit, versions and hardware."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess

import jax


def environment():
  """Dict of the commit, library versions and hardware of this process.

  'commit' ends in '-dirty' where tracked files were changed, and is None where
  the package does not run from a checkout.
  """
  versions = {
    name: importlib.metadata.version(name)
    for name in ('jax', 'jaxlib', 'flax', 'optax')
  }
  device = jax.devices()[0]
  return {
    'commit': _commit(),
    'python': platform.python_version(),
    **versions,
    'platform': device.platform,
    'device_kind': device.device_kind,
    'device_count': jax.device_count(),
    'process_count': jax.process_count(),
    'cpu': _cpu_name(),
    'cores': os.cpu_count(),
    'cores_used': _usable_cores(),
  }


@functools.cache
def _commit(folder=None):
  folder = folder or str(pathlib.Path(__file__).parent)
  # An installed package may lie inside some other project's repository.
  if _git(folder, 'ls-files', '--error-unmatch', '.') is None:
    return None
  commit = _git(folder, 'rev-parse', 'HEAD')
  changed = _git(folder, 'status', '--porcelain', '--untracked-files=no')
  return f'{commit}-dirty' if commit and changed else commit


def _git(folder, *arguments):
  try:
    done = subprocess.run(
      ['git', '-C', folder, *arguments],
      capture_output=True,
      text=True,
      timeout=30,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name():
  try:
    with open('/proc/cpuinfo') as file:
      found = re.search(r'model name\s*:\s*(.+)', file.read())
  except OSError:
    found = None
  name = found[1].strip() if found else platform.processor()
  return name or platform.machine()


def _usable_cores():
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()
