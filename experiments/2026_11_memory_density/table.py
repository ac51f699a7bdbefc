"""The grid as a Markdown table, effects with intervals, and a picture.

python experiments/2026_11_memory_density/table.py
"""

import csv
import itertools
import pathlib
import statistics

import matplotlib
import numpy as np
from scipy import stats

matplotlib.use('Agg')
from matplotlib import pyplot as plt  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
READ, SLOTS = (2, 8, 32), (1024, 4096)


def read(path):
  """{(rows read, slots): {seed: row}}"""
  cells = {}
  with open(path, newline='', encoding='utf-8') as file:
    for row in csv.DictReader(file):
      if row['status'] == 'ok':
        key = int(row['labels.k']), int(row['labels.slots'])
        cells.setdefault(key, {})[int(row['seed'])] = row
  return cells


def table(cells):
  head = ('rows read', 'slots', 'density', 'total', 'active', 'FLOPs per token')
  head += ('seeds', 'loss', 'loss of each seed', 'seconds')
  print(f'| {" | ".join(head)} |')
  print('|---' * len(head) + '|')
  for (k, slots), rows in sorted(cells.items()):
    rows = [rows[seed] for seed in sorted(rows)]
    losses = [float(row['loss']) for row in rows]
    seconds = statistics.fmean(float(row['seconds']) for row in rows)
    line = (
      k,
      slots,
      f'1/{slots // k}',
      rows[0]['params_total'],
      rows[0]['params_active'],
      f'{float(rows[0]["flops_per_token"]):.4e}',
      len(losses),
      f'{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}',
      ' '.join(f'{loss:.4f}' for loss in losses),
      f'{seconds:.0f}',
    )
    print('|', ' | '.join(map(str, line)), '|')
  print()


def effects(cells):
  """Contrasts of cell means with 95 % intervals of Student's t.

  What is left after the means of cells and of seeds has one variance in all
  cells; it is estimated from all of them.
  """
  keys = sorted(cells)
  seeds = sorted(set.intersection(*(set(rows) for rows in cells.values())))
  losses = np.array(
    [[float(cells[k][seed]['loss']) for seed in seeds] for k in keys]
  )
  means = losses.mean(1)
  left = losses - means[:, None] - losses.mean(0) + losses.mean()
  freedom = (len(keys) - 1) * (len(seeds) - 1)
  deviation = (np.square(left).sum() / freedom) ** 0.5
  print(f'seeds {seeds}, deviation {deviation:.4f}, {freedom} degrees\n')
  print('| effect on the loss | mean | 95 % interval |')
  print('|---' * 3 + '|')
  for name, weights in contrasts():
    w = np.array([weights.get(key, 0) for key in keys])
    mean = w @ means
    error = deviation * (np.square(w).sum() / len(seeds)) ** 0.5
    half = stats.t.ppf(0.975, freedom) * error
    print(
      f'| {name} | {mean:+.4f} | [{mean - half:+.4f}, {mean + half:+.4f}] |'
    )


def contrasts():
  """(name, {(rows read, slots): weight})"""
  few, many = SLOTS
  for a, b in itertools.pairwise(READ):
    name = f'{a} to {b} rows, mean of both tables'
    yield name, {(k, s): w for s in SLOTS for k, w in ((a, -0.5), (b, 0.5))}
  for k in READ:
    name = f'{few:,} to {many:,} slots at {k} rows'
    yield name, {(k, many): 1, (k, few): -1}
  share = 1 / len(READ)
  slots = {(k, s): w for k in READ for s, w in ((few, -share), (many, share))}
  yield 'four times the slots, mean over rows', slots
  # From 2 to 32 is a factor of four, twice.
  rows = {(k, s): w for s in SLOTS for k, w in ((2, -0.25), (32, 0.25))}
  yield 'four times the rows, mean over the grid', rows
  both = {key: rows.get(key, 0) - w for key, w in slots.items()}
  yield 'the latter less the former', both


def picture(cells, path):
  figure, axes = plt.subplots(figsize=(6, 4), layout='constrained')
  for slots, color in zip(SLOTS, ('tab:blue', 'tab:orange'), strict=True):
    points = [
      [float(r['loss']) for r in cells[k, slots].values()] for k in READ
    ]
    mean = np.array([np.mean(p) for p in points])
    axes.plot(READ, mean, 'o-', color=color, label=f'{slots:,} slots')
    for k, losses in zip(READ, points, strict=True):
      axes.plot([k] * len(losses), losses, '.', color=color, alpha=0.4)
  axes.set_xscale('log', base=2)
  axes.set_xticks(READ, [str(k) for k in READ])
  axes.set_xlabel('rows that a token reads in a layer')
  axes.set_ylabel('validation loss (nats per byte)')
  axes.set_title('equal training FLOPs; small dots are seeds')
  axes.legend(title='rows of a table')
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  found = read(HERE / 'results.csv')
  table(found)
  effects(found)
  picture(found, HERE / 'density.png')
