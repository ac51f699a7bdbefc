"""The best rate of each width, from results.csv, as a table.

python experiments/2026_11_mup_transfer/table.py results.csv

The best rate of a seed is the vertex of the parabola through the best of the
grid and its neighbours; seeds whose best is at an edge have none.
"""

import collections
import csv
import sys

import numpy as np


def vertices(path):
  """{(variant, parametrization, width): [(log2 of the rate, loss)]}"""
  losses = collections.defaultdict(dict)
  with open(path, newline='') as f:
    for row in csv.DictReader(f):
      key = row['variant'], row['parametrization'], int(row['width'])
      losses[*key, row['seed']][float(row['log2_rate'])] = float(row['loss'])
  found = collections.defaultdict(list)
  for (*key, _), by_rate in losses.items():
    best = min(by_rate, key=by_rate.get)
    near = [best - 1, best, best + 1]
    if all(rate in by_rate for rate in near):
      a, b, _ = np.polyfit(near, [by_rate[rate] for rate in near], 2)
      found[tuple(key)].append((-b / (2 * a), by_rate[best]))
  return found


def main(path):
  print('| variant | parametrisation | width | seeds | log2 rate | loss |')
  print('|---|---|---|---|---|---|')
  for key, points in sorted(vertices(path).items()):
    rates, best = zip(*points, strict=True)
    cells = *key, len(points), _text(rates), _text(best)
    print('|', ' | '.join(map(str, cells)), '|')


def _text(values):
  mean, n = np.mean(values), len(values)
  error = f' ± {np.std(values, ddof=1) / n**0.5:.3f}' if n > 1 else ''
  return f'{mean:.3f}{error}'


if __name__ == '__main__':
  main(sys.argv[1])
