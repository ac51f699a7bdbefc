r"""IsoFLOP sweep: dense against mixtures of experts, on source code.

Four sizes and three activation ratios spend each budget, active parameters
being equal at equal size. `:scale=pod`: the same at pod budgets, on data/.

Claim:    at equal compute more experts lower the loss (2507.17702, fig. 1).
Command:  python -m moejax.main --config=configs/scaling.py
Expect:   leverage above 1, larger where the activation ratio is smaller.
Measured: 1.48 (1/4), 1.73 (1/16) at 1.5e11: experiments/2026_11_isoflop_cpu.
Differs:  bytes, models of 10^4 to 10^5 active parameters; no shared expert.
"""

from configs import common

# (width, layers) of each size; budget in training FLOPs -> sizes spending it.
SCALES = {
  'cpu': dict(
    sizes=((12, 2), (16, 2), (24, 2), (32, 2), (48, 2), (64, 2)),
    budgets={5e10: range(4), 1.5e11: range(1, 5), 4.5e11: range(2, 6)},
    fields=dict(vocab=257, dtype='float32'),
    head_dim=8,
    peak=0.08,  # learning rate times the square root of the width
  ),
  'pod': dict(
    sizes=((384, 8), (512, 8), (640, 10), (768, 14), (1024, 16), (1280, 22)),
    budgets={2e18: range(4), 2e19: range(1, 5), 2e20: range(2, 6)},
    fields=dict(vocab=131_072, dtype='bfloat16'),
    head_dim=64,
    peak=0.04,
  ),
}
# Experts, of which 2 are active; None is dense.
VARIANTS = {'dense': None, 'moe 1/4': 8, 'moe 1/16': 32}


def get_config(arg=None):
  arg, scale = _parse(arg)
  config = common.base()
  config.model = _model(scale, scale['sizes'][0], None)
  config.train.steps, config.train.budget_flops = None, min(scale['budgets'])
  config.labels = dict(
    variant='dense', budget_flops=0.0, activation_ratio=1.0, cost=0.0
  )
  config.sweep.report = common.node('scaling.report.isoflop')
  if arg.scale == 'cpu':
    config.train.batch_size, config.train.seq_len = 4, 128
    config.evaluate.batches = 128
    config.log = dict(every_steps=100, tensorboard=False)
    config.sweep.jobs = 2
  else:
    config.data = common.text_of('data')
    config.train.batch_size, config.train.seq_len = 256, 4096
    config.mesh.expert = 8
    config.checkpoint.every_steps = 500
  return common.two_steps(config) if arg.smoke else config


def get_hyper(hyper, arg=None):
  """One cell for each variant, budget and size."""
  arg, scale = _parse(arg)
  cells = []
  for variant, experts in VARIANTS.items():
    for budget, sizes in scale['budgets'].items():
      for size in list(sizes)[:1] if arg.smoke else sizes:
        cell = _cell(scale, variant, experts, budget, scale['sizes'][size])
        cell['train.budget_flops'] = None if arg.smoke else budget
        cells += hyper.zipit([hyper.fixed(k, v) for k, v in cell.items()])
  return cells


def _cell(scale, variant, experts, budget, size):
  name = f'{variant}-C{budget:.1e}-d{size[0]}L{size[1]}'
  return {
    'name': name.replace(' ', '-').replace('/', '-'),
    'model': _model(scale, size, experts),
    'losses': {} if experts is None else {'load': 0.01, 'z': 0.001},
    'optim.schedule.peak': scale['peak'] * size[0] ** -0.5,
    'labels.variant': variant,
    'labels.budget_flops': budget,
    'labels.activation_ratio': 1.0 if experts is None else 2 / experts,
    'labels.cost': budget * (1.0 if experts is None else 2.0),
  }


def _model(scale, size, experts):
  """Equal active parameters, whatever the experts."""
  width, layers = size
  moe = experts and common.moe(experts, k=2, hidden=width)
  ffn = moe or common.dense(2 * width)
  mixer = common.attention(width // scale['head_dim'])
  return common.uniform(
    common.block(mixer, ffn), layers, width=width, **scale['fields']
  )


def _parse(arg):
  arg = common.parse_arg(arg, scale='cpu', smoke=False)
  if arg.scale not in SCALES:
    raise ValueError(f'scale={arg.scale!r} must be one of {tuple(SCALES)}.')
  return arg, SCALES[arg.scale]
