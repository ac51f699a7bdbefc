"""Rows that a token reads against rows that there are, at equal work.

    python -m moejax.main --config=experiments/2026_11_memory_density/config.py

A memory in every block (2508.18756), as in ../2026_11_memory_trends: 2, 8 or 32
of 1,024 or 4,096 slots of each layer.
"""

from configs import common
from configs.papers.memory import ring

WIDTH, LAYERS = 64, 4
# (slots read, keys of a side): the hidden width at which training FLOPs are
# equal.
HIDDEN = {
  (2, 32): 87,
  (2, 64): 75,
  (8, 32): 84,
  (8, 64): 73,
  (32, 32): 59,
  (32, 64): 48,
}


def model(k, keys):
  node, _ = ring.memory(keys, k, 32, 16, LAYERS, 1, std=0.2)
  ffn = common.beside(node, HIDDEN[k, keys])
  block = common.block(common.attention(4, 2), ffn)
  return common.uniform(block, LAYERS, vocab=257, width=WIDTH)


def get_config(arg=None):
  arg = _args(arg)
  config = common.base()
  config.model = model(8, 32)
  config.optim = common.adamw(4e-3, warmup_steps=50)
  scale = {'lr_scale': 4.0, 'lr_scale_end': 1.0}
  config.optim.groups = (('values/rows$', scale),)
  config.train.steps = 400
  config.train.batch_size, config.train.seq_len = 16, 128
  config.evaluate.batches = 128
  config.log = dict(every_steps=100, tensorboard=False)
  config.labels = dict(k=8, slots=1024)
  return common.two_steps(config) if arg.smoke else config


def get_hyper(hyper, arg=None):
  del hyper
  seeds = range(_args(arg).seeds)
  return [_cell(seed, *cell) for seed in seeds for cell in HIDDEN]


def _args(arg):
  return common.parse_arg(arg, seeds=3, smoke=False)


def _cell(seed, k, keys):
  return {
    'name': f'{k}-of-{keys**2}-{seed}',
    'seed': seed,
    'model': model(k, keys),
    'labels.k': k,
    'labels.slots': keys**2,
  }
