r"""IsoFLOP sweep: dense against mixtures of experts, on source code.

Four sizes and three activation ratios spend each budget, active parameters
being equal at equal size. `:scale=hour`: one budget more, three seeds, rates by
batch. `:scale=pod`: on data/, sizes, rates and batches by a plan, the latter
two of an inner sweep `:scale=pod_rates`. `--dry-run` tells the cells of each.

Claim:    at equal compute more experts lower the loss (2507.17702, fig. 1).
Command:  python -m moejax.main --config=configs/scaling.py
Expect:   leverage above 1, larger where the activation ratio is smaller.
Measured: 1.62 (1/4), 2.20 (1/16) at 4.5e11: experiments/2026_11_isoflop_hour.
Differs:  bytes, models of 10^4 to 10^5 active parameters; no shared expert.
"""

import functools

from configs import common, isoflop
from configs.isoflop import plan

# (width, layers) of each size; budget in training FLOPs -> sizes spending it;
# experts of each variant, 2 of them active (None: dense). `peak` is the
# learning rate times the square root of the width.
CPU = dict(
  sizes=((12, 2), (16, 2), (24, 2), (32, 2), (48, 2), (64, 2), (80, 2)),
  budgets={5e10: range(4), 1.5e11: range(1, 5), 4.5e11: range(2, 6)},
  variants={'dense': None, 'moe 1/4': 8, 'moe 1/16': 32},
  fields=dict(vocab=257, dtype='float32'),
  batch=(4, 128),  # rows, tokens of a row
  head_dim=8,
  peak=0.08,
  decline=(1.6e11, 1 / 3),  # of that learning rate: read off the rates of HOUR
  seeds=1,
  rates={},
  plan=plan(  # the law of its dense runs
    optimum=plan('Power', k=0.0036, a=0.61),
    speed=plan('Measured', path='experiments/2026_11_isoflop_cpu/results.csv'),
  ),
)
HOUR = CPU | dict(
  budgets=CPU['budgets'] | {1.35e12: range(3, 7)},
  seeds=3,
  rates={5e10: 1, 4.5e11: 3},
  rated=('dense', 'moe 1/16'),
)
POD = CPU | dict(
  # A family: the plan chooses.
  sizes=tuple((64 * n, n) for n in (4, 6, 8, 10, 12, 16, 20, 24, 32, 36)),
  budgets={2e18: range(1, 6), 2e19: range(4, 8), 2e20: range(6, 10)},
  fields=dict(vocab=131_072, dtype='bfloat16'),
  batch=(256, 4096),
  head_dim=64,
  peak=0.04,
  pod=True,
  decline=(1.0, 0.0),
)
POD_PLAN = dict(
  optimum=plan('Surface', theta='refit'),
  rates=plan('Rates', learning_rate='moe', batch_tokens='moe'),
  speed=plan('Chip', device='TPU v5p', count=32, utilisation_frac=0.4),
  memory=plan('Compiled', topology=None),  # such as v5p:4x4x2
  min_steps=1000,
  batch_multiple=32,
)
RATE_PLAN = plan(choose=plan('RateGrid'), **POD_PLAN)
POD_RATES = POD | dict(plan=RATE_PLAN, report=None)
POD |= dict(plan=plan(choose=plan('Around', spacing=1.6), **POD_PLAN))
SCALES = {'cpu': CPU, 'hour': HOUR, 'pod': POD, 'pod_rates': POD_RATES}


def get_config(arg=None):
  arg, scale = isoflop.parse(arg, SCALES)
  config = isoflop.base(scale)
  config.model = _model(scale, scale['sizes'][0], None)
  return common.two_steps(config) if arg.smoke else config


def get_hyper(hyper, arg=None):
  del hyper
  arg, scale = isoflop.parse(arg, SCALES)
  return isoflop.grid(scale, functools.partial(_cell, scale), arg.smoke)


def _cell(scale, variant, budget, place):
  size, experts = scale['sizes'][place], scale['variants'][variant]
  return isoflop.cell(
    variant,
    budget,
    _model(scale, size, experts),
    peak=scale['peak'] * size[0] ** -0.5,
    activation_ratio=2 / experts if experts else 1.0,
  )


def _model(scale, size, experts):
  """Equal active parameters, whatever the experts."""
  width = size[0]
  moe = experts and common.moe(experts, k=2, hidden=width)
  return isoflop.model(scale, size, moe or common.dense(2 * width))
