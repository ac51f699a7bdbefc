"""Training steps of one table: timed, and their memory.

Run by `bench.py` as `worker.py SLOTS_LOG2 KIND`. After `ready BYTES`,
those that XLA lays out beside the state, each line `CALLS` is answered by the
median seconds of a step.
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from moejax import host, sharding
from moejax.parts import Parts

WIDTH, LAYERS, TOKENS, ROWS = 64, 2, 1024, 16


def config(slots_log2: int, kind: str):
  """A model whose layers share a table of 2^slots_log2 rows of `WIDTH`.

  With `windows` each sees 2^16 rows of it, and the keys stay as they are.
  """
  windows = kind == 'windows'
  c = common.base()
  memory = common.node(
    'memory.ProductKey',
    keys=2**8 if windows else 2 ** (slots_log2 // 2),
    k=ROWS,
    heads=1,
    head_dim=32,
    values=common.node(
      'memory.tables.Window',
      of='values',
      stride=2 ** (slots_log2 - 1) if windows else 0,
    ),
  )
  block = common.block(common.attention(4, 2), common.beside(memory, 128))
  c.model = common.uniform(block, LAYERS, vocab=257, width=WIDTH)
  c.model.shared = {'values': common.table(2**slots_log2)}
  c.optim.groups = (('values/rows$', {'rows': kind != 'dense'}),)
  c.train.batch_size, c.train.seq_len = TOKENS // 128, 128
  return c


def made(abstract):
  """A state without what takes minutes: normal numbers for a large table."""
  draw = np.random.default_rng(0)

  def one(leaf):
    if leaf.size > 2**21:
      return jnp.full(leaf.shape, 0.01, leaf.dtype, device=leaf.sharding)
    numbers = 0.1 * draw.normal(size=leaf.shape)
    return jax.device_put(numbers.astype(leaf.dtype), leaf.sharding)

  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding),
    abstract,
  )
  return zeros.replace(params=jax.tree.map(one, abstract.params))


def main(slots_log2, kind):
  parts = Parts(config(int(slots_log2), kind))
  state = made(parts.abstract_state)
  draw = np.random.default_rng(0)
  shape = (parts.config.train.batch_size, parts.config.train.seq_len)
  ids = draw.integers(0, 257, (2, *shape), dtype=np.int32)
  ones = np.ones(shape, np.int32)
  places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  rows = dict(tokens=ids[0], targets=ids[1], segments=ones, positions=places)
  batch = sharding.put_batch(rows, parts.batch_sharding)
  with sharding.use(parts.mesh, parts.rules):
    step = parts.train_step.lower(state, batch).compile()
  host.return_freed_memory()
  for _ in range(2):
    state, values = jax.block_until_ready(step(state, batch))
  print('ready', step.memory_analysis().temp_size_in_bytes, flush=True)
  for line in sys.stdin:
    times = []
    for _ in range(int(line)):
      start = time.perf_counter()
      state, values = jax.block_until_ready(step(state, batch))
      times.append(time.perf_counter() - start)
    assert np.isfinite(values['loss'])
    print(statistics.median(times), flush=True)


if __name__ == '__main__':
  host.restart_with_huge_pages()  # as moejax.main does
  main(*sys.argv[1:])
