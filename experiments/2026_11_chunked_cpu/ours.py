"""One side: `chunked_delta` of moejax, forward and backward.

Run by `bench.py`. After `ready`, each line `DECAY` is answered by the seconds
of a pass with that decay; `check DECAY FILE` saves its results.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import problem

from moejax import host
from pallas_kernels.chunked_delta.api import chunked_delta


def passes(shape, decay):
  """-> a compiled function without arguments: y and the gradients."""
  given = problem.arrays(shape, decay)
  dy = jnp.asarray(given.pop('dy'))
  args = tuple(map(jnp.asarray, given.values()))

  @jax.jit
  def run(args, dy):
    y, pull = jax.vjp(lambda *args: chunked_delta(*args)[0], *args)
    return y, pull(dy)

  compiled = run.lower(args, dy).compile()
  host.return_freed_memory()
  return lambda: jax.block_until_ready(compiled(args, dy))


def main(text, decays):
  shape = problem.shape(text)
  runs = {decay: passes(shape, decay) for decay in decays.split(',')}
  for run in runs.values():
    run()
  print('ready', jax.__version__, flush=True)
  for line in sys.stdin:
    words = line.split()
    if words[0] == 'check':
      y, grads = runs[words[1]]()
      names = ('dq', 'dk', 'dv', 'dlog_decay', 'dbeta')
      np.savez(words[2], y=y, **dict(zip(names, grads, strict=True)))
      print('saved', flush=True)
      continue
    start = time.perf_counter()
    runs[words[0]]()
    print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
  host.restart_with_huge_pages()  # as moejax.main does
  main(*sys.argv[1:])
