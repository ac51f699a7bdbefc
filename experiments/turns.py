"""Processes that are timed in turn, so that what else runs hits all alike.

A worker prints `ready ...`, then answers each line on its input. The
benchmarks beside this file import it by path.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable

import numpy as np
from absl import flags

ROUNDS = flags.DEFINE_integer('rounds', 5, 'Paired rounds.')
TORCH_PYTHON = flags.DEFINE_string(
  'torch-python', sys.executable, 'A Python that has torch and transformers.'
)


class Side:
  """A worker process.

  Attributes:
    name: for messages and tables.
    greeting: the words of its first line.
  """

  def __init__(self, name: str, *command: str):
    self.name = name
    self.process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    self.greeting = self.line().split()

  def ask(self, text: str) -> str:
    """Sends a line, returns the first line of the answer."""
    self.process.stdin.write(text + '\n')
    self.process.stdin.flush()
    return self.line()

  def line(self) -> str:
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(f'{self.name} ended; see its output above.')
    return line

  def close(self) -> None:
    self.process.stdin.close()
    self.process.wait()


def spread(values: Iterable[float]) -> str:
  """The median, and all values in order."""
  values = sorted(values)
  inside = ' '.join(f'{v:.2f}' for v in values)
  return f'{statistics.median(values):.2f} ({inside})'


def check(ours: Side, peer: Side) -> None:
  """Raises unless outputs and gradients of both agree.

  A side answers `check PATH` by writing its arrays there, as .npz.
  """
  with tempfile.TemporaryDirectory() as folder:
    found = []
    for side in (ours, peer):
      path = pathlib.Path(folder, f'{side.name}.npz')
      side.ask(f'check {path}')
      found.append(np.load(path))
    for name, a in found[0].items():
      b = found[1][name]
      error = np.abs(a - b).max() / np.abs(b).max()
      if not error < 1e-4:
        raise RuntimeError(
          f'{ours.name} and {peer.name} differ in {name}: {error:.1e} of the '
          'largest value; no time is worth reading before that is mended.'
        )
