"""The tables of a memory layer on a CPU: beside a copy and beside torch.

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


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'stray arguments: {" ".join(argv[1:])}')
  ours = turns.Side('moejax', sys.executable, str(HERE / 'ours.py'))
  peer = turns.Side('torch', turns.TORCH_PYTHON.value, str(HERE / 'peer.py'))
  turns.check(ours, peer)
  rounds = [turn(ours, peer, number) for number in range(turns.ROUNDS.value)]
  for side in (ours, peer):
    side.close()
  table_bytes = problem.SLOTS * problem.WIDTH * 4
  passes, copies, others = zip(*rounds, strict=True)
  bound = [problem.moved_bytes() / (2 * table_bytes / s) for s in copies]
  print('| ms: ours | copy of a table | bound | torch | of bound | of torch |')
  print('|---|---|---|---|---|---|')
  cells = [
    turns.spread(1e3 * s for s in v) for v in (passes, copies, bound, others)
  ]
  cells.append(turns.spread(a / b for a, b in zip(passes, bound, strict=True)))
  cells.append(turns.spread(b / a for a, b in zip(passes, others, strict=True)))
  print(f'| {" | ".join(cells)} |')
  print(f'load average: {os.getloadavg()[0]:.1f}')


def turn(ours, peer, number) -> tuple[float, float, float]:
  """Seconds of our pass, of a copy, of theirs; who is first alternates."""
  found = {}
  for side in (ours, peer)[:: 1 if number % 2 else -1]:
    answer = side.ask(str(CALLS.value)).split()
    found[side.name] = [float(word) for word in answer]
  return (*found['moejax'], *found['torch'])


if __name__ == '__main__':
  app.run(main)
