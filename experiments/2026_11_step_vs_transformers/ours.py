"""One side of the benchmark: the same model in moejax.

Run by `bench.py`: answers each line `steps N` with the seconds of N training
steps, and `peak` with its peak memory.
"""

import resource
import sys
import time

import jax
import numpy as np

from configs import common
from moejax import host, sharding, step
from moejax.parts import Parts


def get_config(arg=None):
  """The recipe of the benchmark; balance terms are off on both sides."""
  arg = common.parse_arg(arg, remat='', scan=False)
  config = common.base()
  config.model = common.node(
    'model.Model',
    vocab=512,
    width=256,
    tied=False,
    remat=arg.remat or None,
    blocks={
      'sparse': common.block(
        common.attention(4, 2, head_dim=64),
        common.moe(64, 8, 128, balance=None),
      )
    },
    pattern=('sparse',),
    # Layers on their own: a scan cuts each one out of a stack and back.
    prefix=('sparse',) * (0 if arg.scan else 3),
    repeats=4 if arg.scan else 1,
  )
  config.optim = common.node(
    'optim.Chain',
    optimizer=common.node('optim.AdamW', weight_decay=0.01),
    schedule=common.node('optim.cosine', peak=1e-3),
    clip_norm=None,
  )
  config.train.batch_size = 8
  config.train.seq_len = 256
  return config


def batch():
  """Random tokens, 8 sequences of 256, one document each."""
  tokens = np.random.default_rng(0).integers(0, 512, (8, 256), dtype=np.int32)
  return {
    'tokens': tokens,
    'targets': np.roll(tokens, -1, axis=1),
    'positions': np.tile(np.arange(256, dtype=np.int32), (8, 1)),
    'segments': np.ones((8, 256), np.int32),
  }


def trainer(arg=None):
  """-> the jitted step, its first state and its batch, as `train` has them."""
  parts = Parts(get_config(arg))
  run = jax.jit(
    step.train_step(parts.model, parts.tx, loss=parts.loss, weights={}),
    donate_argnums=0,
    out_shardings=(parts.state_shardings, sharding.replicated(parts.mesh)),
  )
  with sharding.use(parts.mesh, parts.rules):
    data = sharding.put_batch(batch(), parts.batch_sharding)
  return run, parts, data


def main():
  run, parts, data = trainer(*sys.argv[1:])
  with sharding.use(parts.mesh, parts.rules):
    state = parts.new_state()
    run = run.lower(state, data).compile()
    host.return_freed_memory()
    for _ in range(3):
      state, values = run(state, data)
      values['loss'].block_until_ready()
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print('ready', size, flush=True)
    for line in sys.stdin:
      if line.startswith('steps'):
        for _ in range(int(line.split()[1])):
          start = time.perf_counter()
          state, values = run(state, data)
          loss = float(values['loss'])
          jax.block_until_ready(state)
          print(time.perf_counter() - start, loss, flush=True)
      else:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(peak_kib / 1024, flush=True)


if __name__ == '__main__':
  host.restart_with_huge_pages()  # as moejax.main does
  main()
