"""The MoE layer on a CPU: beside a large product and beside transformers.

    python experiments/2026_11_moe_layer_cpu/bench.py \
      --torch-python=/path/to/a/python/that/has/torch

First both sides' outputs and gradients are compared, then they take turns.
Prints a table: forward and backward of the whole layer, router included.
"""

import os
import pathlib
import statistics
import sys

from absl import app, flags

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
import problem  # noqa: E402
import turns  # noqa: E402

CALLS = flags.DEFINE_integer('calls', 5, 'Passes of each side in a round.')
SHAPES = flags.DEFINE_multi_string(
  'shape', None, 'T,d,n,E,K instead of those of the page.'
)
PEERS = flags.DEFINE_list(
  'peers', ['eager', 'grouped_mm'], "transformers' experts implementations."
)
HEAD = (
  '| T, d, n, E, K | routing | layer, GFLOP/s | product, GFLOP/s | share of '
  'it: median (rounds) | '
)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'stray arguments: {" ".join(argv[1:])}')
  shapes = problem.SHAPES
  if SHAPES.value:
    shapes = tuple(map(problem.shape, SHAPES.value))
  columns = [f'against {name}: median (rounds) |' for name in PEERS.value]
  print(HEAD + ' '.join(columns))
  print('|---' * (5 + len(columns)) + '|', flush=True)
  for shape in shapes:
    for skew in problem.SKEWS:
      print(row(shape, skew), flush=True)
  print(f'load average: {os.getloadavg()[0]:.1f}')


def row(shape: problem.Layer, skew: str) -> str:
  """Measures one shape and skew."""
  text = problem.text(shape)
  ours = turns.Side('moejax', sys.executable, str(HERE / 'ours.py'), text, skew)
  peers = [
    turns.Side(
      name, turns.TORCH_PYTHON.value, str(HERE / 'peer.py'), text, skew, name
    )
    for name in PEERS.value
  ]
  for peer in peers:
    turns.check(ours, peer)
  layers, products, seconds = [], [], [[] for _ in peers]
  for number in range(turns.ROUNDS.value):
    # Who goes first alternates.
    for side in (ours, *peers)[:: 1 if number % 2 else -1]:
      answer = [float(x) for x in side.ask(str(CALLS.value)).split()]
      if side is ours:
        layers.append(answer[0])
        products.append(answer[1])
      else:
        seconds[peers.index(side)].append(answer[0])
  for side in (ours, *peers):
    side.close()
  rates = [problem.flops(shape) / s / 1e9 for s in layers]
  shares = [a / b for a, b in zip(rates, products, strict=True)]
  cells = [text.replace(',', ', '), skew]
  cells += [f'{statistics.median(v):.0f}' for v in (rates, products)]
  cells.append(turns.spread(shares))
  cells += [
    turns.spread([b / a for a, b in zip(layers, peer, strict=True)])
    for peer in seconds
  ]
  return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
  app.run(main)
