"""Turns what `tests/kernels/aot_layer.py` tells into rows of results.csv.

python tests/kernels/aot_layer.py v5e:2x2 '1.4B n256' | python rows.py v5e
"""

import json
import sys


def main(chip):
  for case, cost in json.loads(sys.stdin.read().splitlines()[-1]).items():
    layer, direction = case.rsplit(', ', 1)
    work = round(cost['flops'] / cost['ideal_flops'], 4)
    names = ('live', 'model', 'least_model', 'heap')
    megabytes = [round(cost[f'{n}_bytes'] / 1e6, 1) for n in names]
    print(chip, layer, direction, work, *megabytes, sep=',')


if __name__ == '__main__':
  main(*sys.argv[1:])
