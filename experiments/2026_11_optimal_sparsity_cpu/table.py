"""Mean and standard error over seeds, by task and variant, as Markdown.

python experiments/2026_11_optimal_sparsity_cpu/table.py [results.csv]
"""

import csv
import math
import pathlib
import statistics
import sys

HERE = pathlib.Path(__file__).resolve().parent
MEASURED = ('train/loss', 'test/loss', 'gap', 'train/accuracy', 'test/accuracy')


def mean_and_error(values):
  if len(values) == 1:
    return f'{values[0]:.3f}'
  error = statistics.stdev(values) / math.sqrt(len(values))
  return f'{statistics.fmean(values):.3f} ± {error:.3f}'


def main(path=HERE / 'results.csv'):
  groups = {}
  with open(path, newline='', encoding='utf-8') as file:
    for row in csv.DictReader(file):
      if row['status'] == 'ok':
        gap = float(row['test/loss']) - float(row['train/loss'])
        key = row['labels.task'], row['labels.variant']
        groups.setdefault(key, []).append(row | {'gap': gap})
  head = ('task', 'variant', 'total', 'active', 'steps', 'seeds', *MEASURED)
  print(f'| {" | ".join(head)} |\n{"|---" * len(head)}|')
  for key, rows in groups.items():
    sizes = [rows[0][f'params_{part}'] for part in ('total', 'active')]
    cells = [*key, *sizes, rows[0]['steps'], str(len(rows))]
    for name in MEASURED:
      cells.append(mean_and_error([float(row[name]) for row in rows]))
    print(f'| {" | ".join(cells)} |')


if __name__ == '__main__':
  main(*sys.argv[1:])
