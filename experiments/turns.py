"""Processes that are timed in turn, so that what else runs hits all alike.

A worker prints `ready ...`, then answers each line on its input. The
benchmarks beside this file import it by path.
"""

import os
import subprocess
import sys

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
