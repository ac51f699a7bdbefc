"""Turns lines of JSON, one a chip, into a table of `table.py v4 v5e ...`."""

import csv
import json
import sys

COLUMNS = (
  'temporary_bytes',
  'flops',
  'counted_flops',
  'pass_flops',
  'compile_s',
  'roofline_s',
)

out = csv.writer(sys.stdout, lineterminator='\n')
names = 'chip', 'operation', 'decay', 'D', 'C', 'dtype', 'direction'
out.writerow((*names, *COLUMNS))
for chip, line in zip(sys.argv[1:], sys.stdin, strict=True):
  for case, cost in json.loads(line).items():
    if case != 'scan':
      numbers = (f'{cost[column]:.6g}' for column in COLUMNS)
      out.writerow((chip, *case.split(','), *numbers))
