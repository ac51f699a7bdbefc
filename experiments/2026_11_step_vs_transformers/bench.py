"""Training steps of both sides in turn, and the machine's product rate.

    python experiments/2026_11_step_vs_transformers/bench.py \
      --torch-python=/path/to/a/python/that/has/torch

The sides are processes of their own and take turns, so that whatever else the
machine does hits both. Prints a table: median seconds of a step, tokens per
second, the ratio of each round, and peak memory.
"""

import os
import pathlib
import statistics
import subprocess
import sys

from absl import app, flags

HERE = pathlib.Path(__file__).parent
TOKENS = 8 * 256

ROUNDS = flags.DEFINE_integer('rounds', 5, 'Paired rounds.')
STEPS = flags.DEFINE_integer('steps', 4, 'Steps of each side in a round.')
TORCH_PYTHON = flags.DEFINE_string(
  'torch-python', sys.executable, 'A Python that has torch and transformers.'
)
PEER_ARGS = flags.DEFINE_string('peer-args', '', 'Arguments of peer.py.')


class Side:
  """A worker process that takes steps when told to."""

  def __init__(self, name: str, *command: str):
    self.name = name
    self.seconds: list[float] = []
    self.process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    self.parameters = int(self._line().split()[1])

  def round(self, steps: int) -> None:
    """Takes steps; keeps their median."""
    self._say(f'steps {steps}')
    times = [float(self._line().split()[0]) for _ in range(steps)]
    self.seconds.append(statistics.median(times))

  def peak_mib(self) -> float:
    self._say('peak')
    return float(self._line())

  def _say(self, text):
    self.process.stdin.write(text + '\n')
    self.process.stdin.flush()

  def _line(self):
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(f'{self.name} ended; see its output above.')
    return line


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'stray arguments: {" ".join(argv[1:])}')
  sides = (
    Side('moejax', sys.executable, str(HERE / 'ours.py')),
    Side(
      'transformers',
      TORCH_PYTHON.value,
      str(HERE / 'peer.py'),
      *PEER_ARGS.value.split(),
    ),
  )
  ours, theirs = sides
  if ours.parameters != theirs.parameters:
    raise RuntimeError(
      f'the models differ: {ours.parameters} and {theirs.parameters} parameters'
    )
  for number in range(ROUNDS.value):
    # Who goes first alternates.
    for side in sides if number % 2 else reversed(sides):
      side.round(STEPS.value)
  print('| side | s / step | tokens / s | peak MiB |')
  print('|---|---|---|---|')
  for side in sides:
    seconds = statistics.median(side.seconds)
    print(
      f'| {side.name} | {seconds:.3f} | {TOKENS / seconds:.0f} | '
      f'{side.peak_mib():.0f} |'
    )
  ratios = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
  print(
    f'tokens/s ratio, median of {ROUNDS.value} rounds: '
    f'{statistics.median(ratios):.2f} '
    f'(rounds: {", ".join(f"{r:.2f}" for r in sorted(ratios))})'
  )
  print(f'load average: {os.getloadavg()[0]:.1f}')
  for side in sides:
    side.process.stdin.close()
    side.process.wait()


if __name__ == '__main__':
  app.run(main)
