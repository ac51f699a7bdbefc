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
import sys

from absl import app, flags

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
import turns  # noqa: E402

TOKENS = 8 * 256

STEPS = flags.DEFINE_integer('steps', 4, 'Steps of each side in a round.')
PEER_ARGS = flags.DEFINE_string('peer-args', '', 'Arguments of peer.py.')


class Steps(turns.Side):
  """A worker process that takes training steps when told to."""

  def __init__(self, name: str, *command: str):
    super().__init__(name, *command)
    self.seconds: list[float] = []
    self.parameters = int(self.greeting[1])

  def round(self, steps: int) -> None:
    """Takes steps; keeps their median."""
    lines = [self.ask(f'steps {steps}')]
    lines += [self.line() for _ in range(steps - 1)]
    self.seconds.append(statistics.median(float(x.split()[0]) for x in lines))

  def peak_mib(self) -> float:
    return float(self.ask('peak'))


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'stray arguments: {" ".join(argv[1:])}')
  sides = (
    Steps('moejax', sys.executable, str(HERE / 'ours.py')),
    Steps(
      'transformers',
      turns.TORCH_PYTHON.value,
      str(HERE / 'peer.py'),
      *PEER_ARGS.value.split(),
    ),
  )
  ours, theirs = sides
  if ours.parameters != theirs.parameters:
    raise RuntimeError(
      f'the models differ: {ours.parameters} and {theirs.parameters} parameters'
    )
  for number in range(turns.ROUNDS.value):
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
    f'tokens/s ratio, median of {turns.ROUNDS.value} rounds: '
    f'{statistics.median(ratios):.2f} '
    f'(rounds: {", ".join(f"{r:.2f}" for r in sorted(ratios))})'
  )
  print(f'load average: {os.getloadavg()[0]:.1f}')
  for side in sides:
    side.close()


if __name__ == '__main__':
  app.run(main)
