"""One side: moejax, and the machine's rate of a copy.

Run by `bench.py`. After `ready`, each line `CALLS` is answered by the median
seconds of a pass and of a copy of a table. `check FILE` saves the results.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import problem

from moejax import host
from pallas_kernels.table_lookup.api import table_lookup, table_products


def passes():
  """-> a compiled function without arguments: y and all gradients."""
  given = {k: jnp.asarray(v) for k, v in problem.arrays().items()}

  @jax.jit
  def run(pre, values, x, weights, ids, dy):
    def f(pre, values, x, weights):
      return table_lookup(values, ids, weights * table_products(pre, ids, x))

    y, pull = jax.vjp(f, pre, values, x, weights)
    return y, *pull(dy)

  args = [given[n] for n in ('pre', 'values', 'x', 'weights', 'ids', 'dy')]
  compiled = run.lower(*args).compile()
  copy = jax.jit(lambda a: a + 1).lower(args[0]).compile()
  host.return_freed_memory()
  return (
    lambda: jax.block_until_ready(compiled(*args)),
    lambda: jax.block_until_ready(copy(args[0])),
  )


def seconds(call) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def main():
  run, copy = passes()
  for _ in range(2):
    run(), copy()
  print('ready', jax.__version__, flush=True)
  for line in sys.stdin:
    word, *rest = line.split()
    if word == 'check':
      y, pre, values, x, weights = run()
      np.savez(rest[0], y=y, pre=pre, values=values, x=x, weights=weights)
      print('saved', flush=True)
      continue
    pairs = [(seconds(run), seconds(copy)) for _ in range(int(word))]
    print(*map(statistics.median, zip(*pairs, strict=True)), flush=True)


if __name__ == '__main__':
  host.restart_with_huge_pages()  # as moejax.main does
  main()
