"""Chunked delta rules on a CPU, beside those of transformers.

    python experiments/2026_11_chunked_cpu/bench.py \
      --torch-python=/path/to/a/python/that/has/torch

First both sides' results and gradients are compared, which also warms them up,
then they take turns. Prints a table of forward and backward together. With
`--peer-rounds=0 --nocheck` the other side does not run.
"""

import os
import pathlib
import statistics
import sys
import tempfile

import numpy as np
from absl import app, flags

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
import problem  # noqa: E402
import turns  # noqa: E402

CALLS = flags.DEFINE_integer('calls', 3, 'Passes of ours in a round.')
SHAPES = flags.DEFINE_multi_string(
  'shape', None, 'B,T,H,D instead of those of the page.'
)
DECAYS = flags.DEFINE_list(
  'decays', list(problem.DECAYS), 'channel, head or both.'
)
LENGTHS = flags.DEFINE_list(
  'lengths', None, 'Instead: ours alone at (1, T, 8, 64), for each T.'
)
PEER_ROUNDS = flags.DEFINE_integer(
  'peer-rounds', None, 'Rounds in which the other side runs; all by default.'
)
CHECK = flags.DEFINE_bool('check', True, 'Whether to compare results first.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'stray arguments: {" ".join(argv[1:])}')
  if LENGTHS.value:
    lengths(list(map(int, LENGTHS.value)))
  else:
    shapes = problem.SHAPES
    if SHAPES.value:
      shapes = tuple(map(problem.shape, SHAPES.value))
    print('| B, T, H, D | decay | ours, ms | transformers, ms | times faster |')
    print('|---' * 5 + '|', flush=True)
    for shape in shapes:
      rows(shape)
  print(f'load average: {os.getloadavg()[0]:.1f}')


def side(name, python, file, shape):
  return turns.Side(
    name,
    python,
    str(HERE / file),
    problem.text(shape),
    ','.join(DECAYS.value),
  )


def rows(shape) -> None:
  """Measures one shape."""
  ours = side('moejax', sys.executable, 'ours.py', shape)
  peer = side('transformers', turns.TORCH_PYTHON.value, 'peer.py', shape)
  seconds = {decay: ([], []) for decay in DECAYS.value}
  for decay in DECAYS.value if CHECK.value else ():
    check(ours, peer, decay)
  for number in range(turns.ROUNDS.value):
    for decay, (own, other) in seconds.items():
      own.append(median(ours, decay, CALLS.value))
      if PEER_ROUNDS.value is None or number < PEER_ROUNDS.value:
        other.append(median(peer, decay, 1))
  ours.close()
  peer.close()
  for decay, (own, other) in seconds.items():
    ratios = [b / a for a, b in zip(own, other, strict=False)]
    cells = [problem.text(shape).replace(',', ', '), decay]
    cells += [spread([1e3 * s for s in own], 1)]
    if other:
      cells += [spread([1e3 * s for s in other], 0), spread(ratios, 2)]
    print(f'| {" | ".join(cells)} |', flush=True)
  if set(seconds) == {'channel', 'head'}:
    costs = [
      a / b
      for a, b in zip(seconds['channel'][0], seconds['head'][0], strict=True)
    ]
    print(f'\nchannel over head: {spread(costs, 2)}\n', flush=True)


def lengths(found) -> None:
  """How time grows with the length, ours alone."""
  sides = [
    side(str(T), sys.executable, 'ours.py', problem.shape(f'1,{T},8,64'))
    for T in found
  ]
  for decay in DECAYS.value:
    times = [[] for _ in sides]
    for _ in range(turns.ROUNDS.value):
      for place, each in zip(times, sides, strict=True):
        place.append(median(each, decay, 1))
    medians = list(map(statistics.median, times))
    for T, seconds in zip(found, medians, strict=True):
      print(f'{decay} {T}: {1e3 * seconds:.1f} ms', flush=True)
    growth = [b / a for a, b in zip(medians, medians[1:], strict=False)]
    print(f'{decay}: from each to the next {spread(growth, 2)}', flush=True)
  for each in sides:
    each.close()


def median(which, decay, calls) -> float:
  return statistics.median(float(which.ask(decay)) for _ in range(calls))


def spread(values, digits) -> str:
  inside = ' '.join(f'{v:.{digits}f}' for v in sorted(values))
  return f'{statistics.median(values):.{digits}f} ({inside})'


def check(ours, peer, decay) -> None:
  """Raises unless results and gradients of both agree."""
  with tempfile.TemporaryDirectory() as folder:
    found = []
    for side in (ours, peer):
      path = pathlib.Path(folder, f'{side.name}.npz')
      side.ask(f'check {decay} {path}')
      found.append(np.load(path))
    for name, a in found[0].items():
      b = found[1][name]
      error = np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))
      if not error < 1e-5:
        raise RuntimeError(
          f'{ours.name} and {peer.name} differ in {name}: {error:.1e} relative '
          'root mean square; no time is worth reading before that is mended.'
        )


if __name__ == '__main__':
  app.run(main)
