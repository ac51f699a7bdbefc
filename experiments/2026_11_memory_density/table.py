"""The grid as a Markdown table, effects with intervals, and a picture.

python experiments/2026_11_memory_density/table.py
"""

import csv
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


def effect(cells, name, weights):
  """A contrast of the cells, within seeds, and its 95 % interval of t."""
  seeds = set.intersection(*(set(cells[key]) for key in weights))
  values = [
    sum(w * float(cells[key][seed]['loss']) for key, w in weights.items())
    for seed in sorted(seeds)
  ]
  n = len(values)
  mean = statistics.fmean(values)
  half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5
  print(
    f'| {name} | {mean:+.4f} | [{mean - half:+.4f}, {mean + half:+.4f}] | '
    f'{" ".join(f"{v:+.4f}" for v in values)} |'
  )


def effects(cells):
  print('| effect on the loss | mean | 95 % interval | each seed |')
  print('|---' * 4 + '|')
  for a, b in ((2, 8), (8, 32)):
    weights = {(b, s): 0.5 for s in SLOTS} | {(a, s): -0.5 for s in SLOTS}
    effect(cells, f'{a} to {b} rows, mean of both tables', weights)
  few, many = SLOTS
  for k in READ:
    name = f'{few:,} to {many:,} slots, {k} rows'
    effect(cells, name, {(k, many): 1, (k, few): -1})
  third = 1 / len(READ)
  slots = {(k, many): third for k in READ} | {(k, few): -third for k in READ}
  effect(cells, f'{few:,} to {many:,} slots, mean over rows', slots)
  # A factor of four in rows, on average: half of a factor of sixteen.
  rows = {(32, s): 0.25 for s in SLOTS} | {(2, s): -0.25 for s in SLOTS}
  effect(cells, 'four times the rows, mean over the grid', rows)
  both = {k: rows.get(k, 0) - slots.get(k, 0) for k in rows | slots}
  effect(cells, 'that less four times the slots', both)


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
