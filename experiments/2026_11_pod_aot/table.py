"""One row of results.csv: a recipe, compiled for a topology.

python table.py configs/pods/mixtral_8x22b.py v5p:2x4x4; `header` for the first.
"""

import dataclasses
import sys

from moejax import aot, recipes
from moejax.aot.collectives import KINDS

MEMORY = [field.name for field in dataclasses.fields(aot.Memory)]


def main(path, topology=None):
  if path == 'header':
    names = [f'{name}_gib' for name in MEMORY]
    kinds = [f'{kind}_gib' for kind in KINDS]
    times = ['compute_s', 'memory_s', 'links_s']
    costs = ['compile_s', 'peak_rss_gib', *names]
    work = ['flops', 'model_flops', 'main_memory_gib', *kinds, *times]
    print('recipe', 'topology', 'mesh', 'fits', *costs, *work, sep=',')
    return
  report = aot.check(recipes.load(path).get_config(), topology)
  print(report.text(), file=sys.stderr)
  mesh = ' '.join(f'{name}={size}' for name, size in report.mesh.items())
  row = [path, topology, mesh, report.fits, round(report.compile_seconds)]
  row.append(gib(report.peak_rss_bytes))
  row += [gib(getattr(report.memory, name)) for name in MEMORY]
  if report.refused is None:
    row += [f'{report.flops:.4g}', f'{report.model_flops:.4g}']
    row.append(gib(report.memory_bytes))
    row += [gib(report.collective_bytes.get(kind, 0)) for kind in KINDS]
    row += [f'{seconds:.4g}' for seconds in report.seconds.values()]
  print(*row, sep=',', flush=True)


def gib(size):
  return round(size / 2**30, 3)


if __name__ == '__main__':
  main(*sys.argv[1:])
