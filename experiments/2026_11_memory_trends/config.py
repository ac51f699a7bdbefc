"""Four ways to have five times the parameters, at equal work and equal size.

    python -m moejax.main --config=experiments/2026_11_memory_trends/config.py

4 layers of width 64. `moe` has 2 of 8 experts, `v2` a memory in every block
(2508.18756), `v1` two of a fourfold table with skip pairs (2411.12364),
`neurons` single-neuron experts in place of one feed-forward (2407.04153). Text
is the standard library's; `rounds` tells facts in rounds and asks for one, and
there every other layer attends to two tokens alone. `only=ring` is `v2` with
tables that all layers share.
"""

from configs import common
from configs.papers.memory import ring, skip_pairs

WIDTH, LAYERS = 64, 4
LETTERS = common.node('data.Characters', alphabet='abcdefghijklmnopqrstuvwxyz=')
# Hidden widths are those at which training FLOPs are equal.
HIDDEN = {'moe': 64, 'v2': 73, 'v1': 87, 'neurons': 135, 'ring': 56}
VARIANTS = ('moe', 'v2', 'v1', 'neurons')
SIZES = {
  # steps, rows and tokens of a step, vocabulary
  'text': (400, 16, 128, 257),
  'rounds': (600, 16, 60, 28),
}
DATA = {
  'text': common.node(
    'data.Text', sources={'stdlib': common.node('data.StandardLibrary')}
  ),
  'rounds': common.node(
    'data.Text',
    sources={'rounds': common.node('data.Rounds', count=100_000, rounds=8)},
    tokenizer=LETTERS,
    prompt_end='=',
  ),
}


def model(variant, task):
  """(model, groups of parameters, weights of balance terms)."""
  # Told facts are looked up by what stands before them: a layer that sees two
  # tokens has it at once, and how feed-forwards compare shows sooner.
  near = {'window': 2} if task == 'rounds' else {}
  mixers = common.attention(4, 2, **near), common.attention(4, 2)
  hidden = HIDDEN[variant]

  def layers(*ffns, **fields):
    if near and len(ffns) == 1:
      ffns *= 2
    names = tuple(f'block_{i}' for i in range(len(ffns)))
    blocks = {
      n: common.block(mixers[i % 2], f)
      for i, (n, f) in enumerate(zip(names, ffns, strict=True))
    }
    return common.node(
      'model.Model',
      vocab=SIZES[task][3],
      width=WIDTH,
      blocks=blocks,
      pattern=names,
      repeats=LAYERS // len(ffns),
      **fields,
    )

  if variant == 'moe':
    ffn = common.moe(8, 2, hidden)
    return layers(ffn), (), {'load': 0.01, 'z': 0.001}
  if variant in ('v2', 'ring'):
    windows = LAYERS if variant == 'ring' else 1
    node, shared = ring.memory(48, 16, 32, 16, LAYERS, windows, std=0.2)
    scale = {'lr_scale': 4.0, 'lr_scale_end': 1.0}
    groups = (('values/rows$', scale),)
    return layers(common.beside(node, hidden), shared=shared), groups, {}
  if variant == 'v1':
    node = skip_pairs.memory(136, 16, 16, 32)
    config = common.base()
    config.model = layers(common.dense(hidden))
    skip_pairs.pair(config, mixers[1], common.dense(hidden), node, repeats=2)
    config.model.blocks.reads.mixer = mixers[0]
    scale = {'lr_scale': 10.0, 'lr_scale_end': 1.0}
    return config.model, (('values/rows$', scale),), {}
  table = common.table(48**2)
  node = common.node(
    'memory.SingleNeuron',
    keys=48,
    k=16,
    heads=4,
    head_dim=16,
    values=table,
    pre_values=table,
  )
  ffns = [common.dense(hidden)] * LAYERS
  ffns[2] = node
  return layers(*ffns), (), {}


def get_config(arg=None):
  arg = _args(arg)
  task = 'rounds' if arg.rounds else 'text'
  steps, rows, tokens, _ = SIZES[task]
  config = common.base()
  config.data = DATA[task]
  config.optim = common.adamw(4e-3, warmup_steps=50)
  config.model, config.optim.groups, _ = model('v2', task)
  config.train.steps = steps
  config.train.batch_size, config.train.seq_len = rows, tokens
  config.evaluate.batches = 128 if task == 'text' else None
  config.log = dict(every_steps=100, tensorboard=False)
  config.labels = dict(variant='v2', task=task)
  return common.two_steps(config) if arg.smoke else config


def get_hyper(hyper, arg=None):
  del hyper
  arg = _args(arg)
  task = 'rounds' if arg.rounds else 'text'
  variants = (arg.only,) if arg.only else VARIANTS
  return [_cell(task, v, s) for s in range(arg.seeds) for v in variants]


def _args(arg):
  return common.parse_arg(arg, rounds=False, only='', seeds=3, smoke=False)


def _cell(task, variant, seed):
  built, groups, losses = model(variant, task)
  return {
    'name': f'{task}-{variant}-{seed}',
    'seed': seed,
    'model': built,
    'losses': losses,
    'optim.groups': groups,
    'labels.variant': variant,
  }
