"""One side: moejax, and the machine's rate of a copy.

Run by `bench.py` as `ours.py PART`. After `ready`, each line `CALLS` is
answered by the median seconds of a pass and of a copy of a table. `check FILE`
saves the results.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import problem

from moejax import host, memory
from moejax.types import Context
from pallas_kernels.table_lookup.api import table_lookup, table_products


def tables(given):
  """The tables alone: weighted sums of products."""
  hidden = table_products(given['pre'], given['ids'], given['x'])
  weights = given['weights'] * hidden
  return table_lookup(given['values'], given['ids'], weights)


def layer(given):
  """The whole layer."""
  module = memory.Tucker(
    keys=problem.KEYS,
    k=problem.ROWS,
    head_dim=problem.RANKS * problem.SIZE,
    values=memory.tables.Table(problem.SLOTS, problem.WIDTH),
    pre_values=memory.tables.Table(problem.SLOTS, problem.WIDTH),
  )
  params = dict(
    halves=dict(
      query={'kernel': given['query'][:, :, None]},
      keys=given['keys'][:, None],
      query_scale=given['query_scale'],
      key_scale=given['key_scale'],
    ),
    cores=given['cores'][:, None],
    pre=given['pre'],
    out=given['out'],
    values={'rows': given['values']},
    pre_values={'rows': given['pre_values']},
  )
  direction = {'direction': jnp.ones((1, problem.RANKS))}
  ctx = Context(*(jnp.ones((1, problem.TOKENS), jnp.int32),) * 3)
  variables = {'params': params, 'balance': direction}
  return module.apply(variables, given['x'][None], ctx)[0]


def passes(part):
  """Compiled functions without arguments: all results by name, and a copy."""
  given = {k: jnp.asarray(v) for k, v in problem.arrays(part).items()}
  dy = given.pop('dy')
  whole = {k: given.pop(k) for k in ('ids',) if k in given}
  forward = {'tables': tables, 'layer': layer}[part]

  @jax.jit
  def run(given, whole, dy):
    y, pull = jax.vjp(lambda given: forward(given | whole), given)
    return {'y': y, **pull(dy)[0]}

  compiled = run.lower(given, whole, dy).compile()
  copy = jax.jit(lambda a: a + 1).lower(given['values']).compile()
  host.return_freed_memory()
  return (
    lambda: jax.block_until_ready(compiled(given, whole, dy)),
    lambda: jax.block_until_ready(copy(given['values'])),
  )


def seconds(call) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def main(part):
  run, copy = passes(part)
  for _ in range(2):
    run(), copy()
  print('ready', jax.__version__, flush=True)
  for line in sys.stdin:
    word, *rest = line.split()
    if word == 'check':
      np.savez(rest[0], **run())
      print('saved', flush=True)
      continue
    pairs = [(seconds(run), seconds(copy)) for _ in range(int(word))]
    print(*map(statistics.median, zip(*pairs, strict=True)), flush=True)


if __name__ == '__main__':
  host.restart_with_huge_pages()  # as moejax.main does
  main(*sys.argv[1:])
