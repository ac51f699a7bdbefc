"""A memory layer on a CPU: its tables beside a copy, all of it beside torch.

    python experiments/2026_11_memory_cpu/bench.py \
      --torch-python=/path/to/a/python/that/has/torch

First both sides' outputs and gradients are compared, then they take turns.
"""

import os
import pathlib
import sys

from absl import app, flags

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
import problem  # noqa: E402
import turns  # noqa: E402

CALLS = flags.DEFINE_integer('calls', 2, 'Passes of each side in a round.')


PART = flags.DEFINE_enum('part', 'tables', ['tables', 'layer'], 'What of it.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'stray arguments: {" ".join(argv[1:])}')
  part = PART.value
  ours = turns.Side('moejax', sys.executable, str(HERE / 'ours.py'), part)
  peer = turns.Side(
    'torch', turns.TORCH_PYTHON.value, str(HERE / 'peer.py'), part
  )
  turns.check(ours, peer)
  rounds = [turn(ours, peer, number) for number in range(turns.ROUNDS.value)]
  for side in (ours, peer):
    side.close()
  passes, copies, others = zip(*rounds, strict=True)
  cells = {'ours, ms': (1e3 * s for s in passes)}
  if part == 'tables':
    table_bytes = problem.SLOTS * problem.WIDTH * 4
    bound = [problem.moved_bytes() / (2 * table_bytes / s) for s in copies]
    cells['copy of a table'] = (1e3 * s for s in copies)
    cells['bound'] = (1e3 * s for s in bound)
    cells['of the bound'] = ratios(passes, bound)
  cells['torch, ms'] = (1e3 * s for s in others)
  cells['times as fast'] = ratios(others, passes)
  print(f'| {" | ".join(cells)} |\n{"|---" * len(cells)}|')
  print(f'| {" | ".join(map(turns.spread, cells.values()))} |')
  print(f'load average: {os.getloadavg()[0]:.1f}')


def ratios(a, b):
  return (x / y for x, y in zip(a, b, strict=True))


def turn(ours, peer, number) -> tuple[float, float, float]:
  """Seconds of our pass, of a copy, of theirs; who is first alternates."""
  found = {}
  for side in (ours, peer)[:: 1 if number % 2 else -1]:
    answer = side.ask(str(CALLS.value)).split()
    found[side.name] = [float(word) for word in answer]
  return (*found['moejax'], *found['torch'])


if __name__ == '__main__':
  app.run(main)
