r"""IsoFLOP sweep: dense against mixtures of experts, on source code.

Every budget is spent by models of several sizes and three activation ratios
(dense, 1/4, 1/16) with equal active parameters at equal size; the report fits
the parabolas, the frontiers and the efficiency leverage.

Claim:    at equal compute more experts lower the loss (2507.17702, fig. 1).
Command:  python -m moejax.main --config=configs/scaling.py
Expect:   not run.
Measured: not run.
Differs:  bytes, models of 10^4 to 10^6 parameters; no shared expert.
"""

from configs import common

# Width and layers of each size, smallest first.
SIZES = {
  'cpu': ((16, 2), (24, 2), (32, 2), (48, 2), (64, 2)),
  'pod': (
    (384, 8),
    (512, 8),
    (640, 10),
    (768, 14),
    (1024, 16),
    (1280, 22),
    (1536, 26),
  ),
}
# Training FLOPs, and which sizes spend them.
BUDGETS = {
  'cpu': {5e10: (0, 1, 2, 3), 1.5e11: (0, 1, 2, 3), 4.5e11: (1, 2, 3, 4)},
  'pod': {2e18: (0, 1, 2, 3), 2e19: (1, 2, 3, 4, 5), 2e20: (3, 4, 5, 6)},
}
# Experts at 2 active ones: the activation ratio is 2 / experts.
EXPERTS = {'dense': None, 'moe 1/4': 8, 'moe 1/16': 32}
VOCAB = {'cpu': 257, 'pod': 131_072}
HEAD_DIM = {'cpu': 8, 'pod': 64}
# Peak learning rate times the square root of the width.
PEAK = {'cpu': 0.08, 'pod': 0.04}


def get_config(arg=None):
  arg = _parse(arg)
  config = common.base()
  config.model = _model(arg.scale, SIZES[arg.scale][0], None)
  config.train.steps = None
  config.train.budget_flops = min(BUDGETS[arg.scale])
  config.labels = dict(
    variant='dense', budget_flops=0.0, activation_ratio=1.0, cost=0.0
  )
  config.sweep.jobs = 2
  config.sweep.report = common.node('scaling.report.isoflop')
  if arg.scale == 'cpu':
    config.train.batch_size = 4
    config.train.seq_len = 128
    config.evaluate.batches = 128
    config.log.every_steps = 100
    config.log.tensorboard = False
  else:
    config.data.sources = {
      'files': common.node('data.Files', pattern='data/**/*.array_record')
    }
    config.data.tokenizer = common.node(
      'data.TokenizerFile', path='data/tokenizer.json'
    )
    config.train.batch_size = 256
    config.train.seq_len = 4096
    config.mesh = dict(data=-1, expert=8)
    config.checkpoint.every_steps = 500
    config.sweep.jobs = 1
  if arg.smoke:
    config.train.steps, config.train.budget_flops = 2, None
    config.optim.schedule.warmup_steps = 1
    config.evaluate.batches = 2
  return config


def get_hyper(hyper, arg=None):
  """One cell for each variant, budget and size."""
  arg = _parse(arg)
  cells = []
  for variant, num_experts in EXPERTS.items():
    for budget, sizes in BUDGETS[arg.scale].items():
      for size in sizes[:1] if arg.smoke else sizes:
        cells += _cell(hyper, arg, variant, num_experts, budget, size)
  return cells


def _cell(hyper, arg, variant, num_experts, budget, size):
  width, layers = SIZES[arg.scale][size]
  fixed = {
    'name': f'{variant.replace("/", "-").replace(" ", "-")}-C{budget:.0e}'
    f'-d{width}L{layers}',
    'model': _model(arg.scale, (width, layers), num_experts),
    'losses': {} if num_experts is None else {'load': 0.01, 'z': 0.001},
    'optim.schedule.peak': PEAK[arg.scale] * width**-0.5,
    'train.budget_flops': None if arg.smoke else budget,
    'labels.variant': variant,
    'labels.budget_flops': budget,
    'labels.activation_ratio': 1.0 if num_experts is None else 2 / num_experts,
    'labels.cost': budget * (1.0 if num_experts is None else 2.0),
  }
  return hyper.zipit([hyper.fixed(path, v) for path, v in fixed.items()])


def _parse(arg):
  return common.parse_arg(arg, scale='cpu', smoke=False)


def _model(scale, size, num_experts):
  """A model whose active parameters do not depend on the experts."""
  width, layers = size
  head_dim = HEAD_DIM[scale]
  mixer = common.attention(max(1, width // head_dim), head_dim=head_dim)
  if num_experts is None:
    ffn = common.dense(2 * width)
  else:
    ffn = common.moe(num_experts, k=2, hidden=width)
  return common.node(
    'model.Model',
    vocab=VOCAB[scale],
    width=width,
    blocks={'block': common.block(mixer, ffn)},
    pattern=('block',),
    repeats=layers,
    dtype='float32' if scale == 'cpu' else 'bfloat16',
  )
