"""The training loss of each run of a sweep along its steps, as one CSV.

python experiments/2026_11_memory_trends/curves.py WORKDIR curves_rounds.csv
"""

import csv
import json
import pathlib
import sys


def main(workdir, path):
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['name', 'step', 'loss'])
    for log in sorted(pathlib.Path(workdir).glob('cells/*/metrics.jsonl')):
      for line in log.read_text().splitlines():
        values = json.loads(line)
        if 'loss' in values:
          name = log.parent.name
          writer.writerow([name, values['step'], f'{values["loss"]:.4f}'])


if __name__ == '__main__':
  main(*sys.argv[1:])
