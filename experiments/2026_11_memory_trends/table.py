"""The runs as Markdown: losses by variant, and bytes read per token.

python experiments/2026_11_memory_trends/table.py [results.csv ...]
"""

import csv
import importlib.util
import math
import pathlib
import statistics
import sys

from moejax import accounting
from moejax.build import build

HERE = pathlib.Path(__file__).resolve().parent
BATCHES = (1, 16, 64, 1024)


def mean_and_error(values):
  if len(values) == 1:
    return f'{values[0]:.4f}'
  error = statistics.stdev(values) / math.sqrt(len(values))
  return f'{statistics.fmean(values):.4f} ± {error:.4f}'


def losses(path):
  groups = {}
  with open(path, newline='', encoding='utf-8') as file:
    for row in csv.DictReader(file):
      if row['status'] == 'ok':
        key = row['labels.task'], row['labels.variant']
        groups.setdefault(key, []).append(row)
  head = ('task', 'variant', 'total', 'active', 'FLOPs per token', 'seeds')
  measured = ['loss', 'loss of each seed', 'right', 'seconds']
  print(f'| {" | ".join([*head, *measured])} |')
  print('|---' * (len(head) + len(measured)) + '|')
  for key, rows in groups.items():
    rows.sort(key=lambda row: row['seed'])
    sizes = [rows[0][f'params_{part}'] for part in ('total', 'active')]
    flops = f'{float(rows[0]["flops_per_token"]):.3e}'
    each = [float(row['loss']) for row in rows]
    right = [
      float(row['validation/accuracy'])
      for row in rows
      if row.get('validation/accuracy')
    ]
    cells = [*key, *sizes, flops, str(len(rows)), mean_and_error(each)]
    cells.append(' '.join(f'{loss:.4f}' for loss in each))
    cells.append(mean_and_error(right) if right else '')
    seconds = statistics.fmean(float(row['seconds']) for row in rows)
    cells.append(f'{seconds:.0f}')
    print(f'| {" | ".join(cells)} |')
  print()


def bytes_read():
  spec = importlib.util.spec_from_file_location('trends', HERE / 'config.py')
  config = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(config)
  print(f'| variant | {" | ".join(f"batch {b}" for b in BATCHES)} |')
  print('|---' * (1 + len(BATCHES)) + '|')
  for variant in config.HIDDEN:
    model = build(config.model(variant, 'text')[0], 'model')
    rows = accounting.parameter_rows(model)
    cells = []
    for batch in BATCHES:
      read = accounting.decode_bytes(rows, batch)
      both = (read[kind] / batch / 1e3 for kind in ('unique', 'raw'))
      cells.append(' / '.join(f'{value:.1f}' for value in both))
    print(f'| {variant} | {" | ".join(cells)} |')


if __name__ == '__main__':
  for path in sys.argv[1:] or sorted(HERE.glob('results*.csv')):
    losses(path)
  bytes_read()
