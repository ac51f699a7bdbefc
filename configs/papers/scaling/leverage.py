r"""Efficiency leverage: activation ratio, granularity and shared experts.

The sizes and budgets are those of configs/scaling.py. Of G = 2 width / hidden
experts that a token uses, some are shared by all; their hidden widths sum to
twice the width whatever G, so that at equal size the active parameters are
those of the dense model but for the router. `:scale=pod` for accelerators,
`:seeds=3` for standard errors.

Claim:    leverage is a power of the activation ratio and grows with compute;
          granularity has an optimum near 12; one shared expert is best.
Command:  python -m moejax.main --config=configs/papers/scaling/leverage.py
Expect:   leverage above 1, falling with the activation ratio, in every budget.
Measured: not run; configs/scaling.py has the activation ratio at G = 2, none
          shared, in one seed: experiments/2026_11_isoflop_cpu.
Differs:  one factor varied at a time; learning rates by the width alone, not
          by the paper's law; at the scale of a CPU bytes, models of 10^4 to
          10^5 active parameters and G of 2 to 8 only.
"""

from configs import common, scaling

PAPER = dict(
  title='Towards Greater Leverage: Scaling Laws for Efficient '
  'Mixture-of-Experts Language Models',
  arxiv='2507.17702',
  mechanisms=('moe.Moe', 'scaling.report.isoflop'),
  status='recipe',
)
# Routed experts per used one, granularity, shared experts; None is dense.
VARIANTS = {
  'dense': None,
  'base': (8, 4, 1),
  'ratio 1/2': (2, 4, 1),
  'ratio 1/4': (4, 4, 1),
  'ratio 1/16': (16, 4, 1),
  'granularity 2': (8, 2, 1),
  'granularity 8': (8, 8, 1),
  'shared 0': (8, 4, 0),
  'shared 2': (8, 4, 2),
}


def get_config(arg=None):
  arg = _parse(arg)
  config = scaling.get_config(f'scale={arg.scale},smoke={arg.smoke}')
  config.labels.update(granularity=1.0, shared_experts=0)
  return config


def get_hyper(hyper, arg=None):
  """One cell for each variant, budget, size and seed."""
  arg = _parse(arg)
  scale = scaling.SCALES[arg.scale]
  made = [
    _cell(scale, variant, budget, scale['sizes'][size], seed)
    for variant in VARIANTS
    for budget, sizes in scale['budgets'].items()
    for size in sizes
    for seed in range(arg.seeds)
  ]
  fixed = [[hyper.fixed(k, v) for k, v in cell.items()] for cell in made]
  return hyper.chainit(map(hyper.zipit, fixed))


def _cell(scale, variant, budget, size, seed):
  width, layers = size
  ffn, ratio, granularity, shared = _ffn(VARIANTS[variant], width)
  dense = VARIANTS[variant] is None
  name = f'{variant}-C{budget:.1e}-d{width}L{layers}-{seed}'
  mixer = common.attention(width // scale['head_dim'])
  return {
    'name': name.replace(' ', '-').replace('/', '-'),
    'seed': seed,
    'model': common.uniform(
      common.block(mixer, ffn), layers, width=width, **scale['fields']
    ),
    'losses': {} if dense else {'load': 0.01, 'z': 0.001},
    'optim.schedule.peak': scale['peak'] * width**-0.5,
    'train.budget_flops': budget,
    'labels.variant': variant,
    'labels.budget_flops': budget,
    'labels.activation_ratio': ratio,
    'labels.granularity': granularity,
    'labels.shared_experts': shared,
    'labels.cost': budget * (1.0 if dense else 2.0),
  }


def _ffn(variant, width):
  """(feed-forward, activation ratio, granularity, shared experts)."""
  if variant is None:
    return common.dense(2 * width), 1.0, 1.0, 0
  per_used, granularity, shared = variant
  hidden, experts = 2 * width // granularity, per_used * granularity
  k, wide = granularity - shared, shared * hidden or None
  ffn = common.moe(experts, k, hidden, shared=wide)
  ratio = granularity / (experts + shared)
  return ffn, ratio, 2 * width / hidden, shared


def _parse(arg):
  return common.parse_arg(arg, scale='cpu', seeds=1, smoke=False)
