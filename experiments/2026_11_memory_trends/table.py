"""The runs as Markdown: by variant, beside the mixture, and bytes per token.

python experiments/2026_11_memory_trends/table.py
"""

import collections
import csv
import importlib.util
import itertools
import math
import pathlib
import statistics

from scipy import stats

from moejax import accounting
from moejax.build import build

HERE = pathlib.Path(__file__).resolve().parent
BATCHES = (1, 16, 64, 1024)
FILES = {
  'text': ('results.csv', 'results_ring.csv'),
  'rounds': ('results_rounds.csv',),
  'rounds, attention everywhere': ('results_rounds_everywhere.csv',),
}
MEASURED = {'loss': 'loss', 'right': 'validation/accuracy'}


def read(files):
  """{variant: {seed: row}}"""
  runs = {}
  for name in files:
    with open(HERE / name, newline='', encoding='utf-8') as file:
      for row in csv.DictReader(file):
        if row['status'] == 'ok':
          by_seed = runs.setdefault(row['labels.variant'], {})
          by_seed[int(row['seed'])] = row
  return runs


def values(rows, column):
  return {s: float(r[column]) for s, r in sorted(rows.items()) if r.get(column)}


def measured(by_variant):
  """What was measured: {name: column}."""
  rows = [row for rows in by_variant.values() for row in rows.values()]
  return {
    name: column
    for name, column in MEASURED.items()
    if any(row.get(column) for row in rows)
  }


def summary(found):
  """Mean ± standard error (standard deviation)."""
  if len(found) < 2:
    return ' '.join(f'{value:.4f}' for value in found)
  deviation = statistics.stdev(found)
  error = deviation / math.sqrt(len(found))
  return f'{statistics.fmean(found):.4f} ± {error:.4f} ({deviation:.4f})'


def runs(task, by_variant):
  head = ['task', 'variant', 'total', 'active', 'FLOPs per token', 'seeds']
  columns = measured(by_variant)
  for name in columns:
    head += [name, f'{name} of each seed']
  print_row([*head, 'seconds'], rule=True)
  for variant, rows in by_variant.items():
    first = next(iter(rows.values()))
    cells = [task, variant, first['params_total'], first['params_active']]
    cells += [f'{float(first["flops_per_token"]):.3e}', str(len(rows))]
    for column in columns.values():
      found = values(rows, column).values()
      cells += [summary(found), ' '.join(f'{value:.4f}' for value in found)]
    seconds = values(rows, 'seconds').values()
    print_row([*cells, f'{statistics.fmean(seconds):.0f}'])
  print()


def differences(task, by_variant, pairs):
  """Differences within seeds, with 95 % intervals of Student's t."""
  columns = measured(by_variant)
  print_row(['task', 'difference', *columns], rule=True)
  for variant, other in pairs:
    cells = [task, f'{variant} - {other}']
    for column in columns.values():
      mine, theirs = (
        values(by_variant[name], column) for name in (variant, other)
      )
      seeds = sorted(mine.keys() & theirs.keys())
      cells.append(interval([mine[seed] - theirs[seed] for seed in seeds]))
    if any(cells[2:]):
      print_row(cells)
  print()


def interval(found):
  n = len(found)
  if n < 2:
    return ' '.join(f'{value:+.4f}' for value in found)
  mean = statistics.fmean(found)
  half = stats.t.ppf(0.975, n - 1) * statistics.stdev(found) / math.sqrt(n)
  return f'{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]'


def guessing(config):
  """What answers are worth that know the told values, or what follows a key."""
  data = build(config.DATA['rounds'], 'data')
  source = data.sources['rounds']
  right, loss, follows, count = 0.0, 0.0, 0.0, 0
  documents = source.documents('validation')
  for i in range(len(documents)):
    for document in documents[i]:
      text = document.text.decode()
      told, asked, answer = text[: 2 * source.rounds], text[-3], text[-1]
      values = collections.Counter(told[1::2])
      shares = [n / source.rounds for n in values.values()]
      right += max(shares)
      loss -= sum(p * math.log(p) for p in shares)
      after = [b for a, b in itertools.pairwise(told) if a == asked]
      follows += after.count(answer) / len(after)
      count += 1
  # The end of an answer is scored too, and costs nothing.
  print(f'guessing among what was told: loss {loss / count / 2:.4f}, ', end='')
  print(f'right {right / count:.4f}; any letter that follows the one asked ')
  print(f'for, be that key or value: {follows / count:.4f}\n')


def bytes_read(config):
  print_row(['variant', *(f'batch {b}' for b in BATCHES)], rule=True)
  for variant in config.HIDDEN:
    model = build(config.model(variant, 'text')[0], 'model')
    rows = accounting.parameter_rows(model)
    cells = []
    for batch in BATCHES:
      read = accounting.decode_bytes(rows, batch)
      both = (read[kind] / batch / 1e3 for kind in ('unique', 'raw'))
      cells.append(' / '.join(f'{value:.1f}' for value in both))
    print_row([variant, *cells])


def print_row(cells, rule=False):
  print(f'| {" | ".join(cells)} |')
  if rule:
    print('|---' * len(cells) + '|')


def load_config():
  spec = importlib.util.spec_from_file_location('trends', HERE / 'config.py')
  config = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(config)
  return config


if __name__ == '__main__':
  CONFIG = load_config()
  for TASK, NAMES in FILES.items():
    BY_VARIANT = read(NAMES)
    runs(TASK, BY_VARIANT)
    PAIRS = [(v, 'moe') for v in BY_VARIANT if v != 'moe']
    PAIRS += [(v, 'v2') for v in ('v1', 'neurons', 'ring') if v in BY_VARIANT]
    differences(TASK, BY_VARIANT, PAIRS)
  guessing(CONFIG)
  bytes_read(CONFIG)
