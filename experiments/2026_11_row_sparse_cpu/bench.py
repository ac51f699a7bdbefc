"""Step times with updates by rows and of whole tables, by the table's size.

    python experiments/2026_11_row_sparse_cpu/bench.py

All sizes of a round take turns, so that what else runs hits all alike.
"""

import concurrent.futures
import os
import pathlib
import statistics
import sys

from absl import app, flags

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
import turns  # noqa: E402

CALLS = flags.DEFINE_integer('calls', 5, 'Steps of each side in a round.')
SIZES = flags.DEFINE_multi_integer(
  'log2', [16, 18, 20, 22], 'Slots of the table, as a power of two.'
)
DENSE = flags.DEFINE_multi_integer('dense', [16, 20], 'Likewise, whole.')


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'stray arguments: {" ".join(argv[1:])}')
  names = [(s, 'rows') for s in SIZES.value]
  names += [(s, 'windows') for s in SIZES.value]
  names += [(s, 'dense') for s in DENSE.value]

  def side(name):
    size, kind = name
    worker = str(HERE / 'worker.py')
    return turns.Side(str(name), sys.executable, worker, str(size), kind)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    sides = dict(zip(names, pool.map(side, names), strict=True))
  times = {n: [] for n in names}
  for _ in range(turns.ROUNDS.value):
    for n, side in sides.items():
      times[n].append(1e3 * float(side.ask(str(CALLS.value))))
  print('| slots | update | ms of a step | of 2^16 | beside the state, MiB |')
  print('|---|---|---|---|---|')
  for n, side in sides.items():
    side.close()
    first = times[min(SIZES.value), n[1]]
    ratio = statistics.median(times[n]) / statistics.median(first)
    size = int(side.greeting[1]) / 2**20
    cells = f'2^{n[0]}', n[1], turns.spread(times[n]), f'{ratio:.2f}'
    print(f'| {" | ".join(cells)} | {size:.0f} |')
  print(f'load average: {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
  app.run(main)
