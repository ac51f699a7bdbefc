r"""Efficiency leverage: activation ratio, granularity and shared experts.

The sizes and budgets are those of configs/scaling.py. Of G = 2 width / hidden
experts that a token uses, some are shared by all; their hidden widths sum to
twice the width whatever G, so that at equal size the active parameters are
those of the dense model but for the router. `:scale=hour` has three seeds.

Claim:    leverage is a power of the activation ratio and grows with compute;
          granularity has an optimum near 12; one shared expert is best.
Command:  python -m moejax.main --config=configs/papers/scaling/leverage.py
Expect:   leverage above 1, falling with the activation ratio, in every budget.
Measured: not run; configs/scaling.py:scale=hour has the activation ratio at
          G = 2, none shared: experiments/2026_11_isoflop_hour.
Differs:  one factor varied at a time; learning rates by width and budget, not
          by the paper's law; at the scale of a CPU bytes, models of 10^4 to
          10^5 active parameters and G of 2 to 8 only.
"""

import functools

from configs import common, isoflop, scaling

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
SCALES = {
  name: scale | dict(variants=VARIANTS, rates={})
  for name, scale in scaling.SCALES.items()
}


def get_config(arg=None):
  arg, scale = isoflop.parse(arg, SCALES)
  config = isoflop.base(scale)
  size = scale['sizes'][0]
  config.model = isoflop.model(scale, size, common.dense(2 * size[0]))
  config.labels.update(granularity=1.0, shared_experts=0)
  return common.two_steps(config) if arg.smoke else config


def get_hyper(hyper, arg=None):
  del hyper
  arg, scale = isoflop.parse(arg, SCALES)
  return isoflop.grid(scale, functools.partial(_cell, scale), arg.smoke)


def _cell(scale, variant, budget, place):
  size, parts = scale['sizes'][place], VARIANTS[variant]
  width = size[0]
  ffn, labels = common.dense(2 * width), {}
  if parts is not None:
    per_used, granularity, shared = parts
    hidden, experts = 2 * width // granularity, per_used * granularity
    k, wide = granularity - shared, shared * hidden or None
    ffn = common.moe(experts, k, hidden, shared=wide)
    labels = {
      'activation_ratio': granularity / (experts + shared),
      'labels.granularity': 2 * width / hidden,
      'labels.shared_experts': shared,
    }
  model, peak = isoflop.model(scale, size, ffn), scale['peak'] * width**-0.5
  return isoflop.cell(variant, budget, model, peak=peak, **labels)
