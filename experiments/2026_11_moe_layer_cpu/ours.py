"""One side: the layer in moejax, and the machine's rate of a large product.

Run by `bench.py`. After `ready`, each line `CALLS` is answered by the median
seconds of a forward and backward pass, the median rate of a product in
GFLOP/s, and a checksum of the results. `check FILE` saves them all.
"""

import statistics
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import problem

from moejax import dispatch, experts, host, moe, routers
from moejax.types import Context

SIDE = 2048  # of the square matrices of the large product


def layer(shape: problem.Layer) -> nn.Module:
  return moe.Moe(
    router=routers.Router(
      score=routers.scores.Linear(shape.experts),
      k=shape.k,
      select=routers.select.top_k,
      weigh=routers.weigh.softmax,
    ),
    dispatch=dispatch.Sort(),
    experts=experts.Glu(shape.n, shape.experts),
  )


def passes(shape, skew):
  """-> a compiled function without arguments: y and all gradients."""
  given = problem.arrays(shape, skew)
  params = {
    'router': {'score': {'kernel': given['router']}},
    'experts': {name: given[name] for name in ('gate', 'up', 'down')},
  }
  module = layer(shape)
  tokens = jnp.ones((1, shape.tokens), jnp.int32)
  ctx = Context(tokens_BT=tokens, positions_BT=tokens, segments_BT=tokens)

  @jax.jit
  def run(params, x, dy):
    y, pull = jax.vjp(
      lambda params, x: module.apply({'params': params}, x, ctx), params, x
    )
    return y, *pull(dy)

  args = jax.tree.map(
    jnp.asarray, (params, given['x'][None], given['dy'][None])
  )
  compiled = run.lower(*args).compile()
  host.return_freed_memory()
  return lambda: jax.block_until_ready(compiled(*args))


def seconds(call) -> float:
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def main(shape, skew):
  run = passes(problem.shape(shape), skew)
  square = jnp.ones((SIDE, SIDE))
  product = jax.jit(jnp.matmul).lower(square, square).compile()

  def multiply():
    jax.block_until_ready(product(square, square))

  for _ in range(2):
    run(), multiply()
  print('ready', jax.__version__, flush=True)
  for line in sys.stdin:
    word, *rest = line.split()
    if word == 'check':
      y, grads, dx = run()
      np.savez(
        rest[0],
        y=y[0],
        dx=dx[0],
        router=grads['router']['score']['kernel'],
        **grads['experts'],
      )
      print('saved', flush=True)
      continue
    pairs = [(seconds(run), seconds(multiply)) for _ in range(int(word))]
    layer_s, product_s = map(statistics.median, zip(*pairs, strict=True))
    print(layer_s, 2 * SIDE**3 / product_s / 1e9, flush=True)


if __name__ == '__main__':
  host.restart_with_huge_pages()  # as moejax.main does
  main(*sys.argv[1:])
