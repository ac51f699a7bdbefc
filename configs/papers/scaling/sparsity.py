r"""Sparsity at equal compute: parameters against FLOPs.

A token uses 4 experts of a fixed width and a shared one, out of 8 to 128. Each
budget is spent by several sizes at each sparsity, so that one table has both
views: equal active parameters with more experts, and equal total parameters
with fewer FLOPs for each token (the column params_total). `:scale=hour` has
three seeds.

Claim:    at equal active parameters and compute the loss falls as sparsity,
          experts per used one, grows; 48 needs 1.69, 1.39 and 1.15 times fewer
          FLOPs than 8, 16 and 32 for the same loss.
Command:  python -m moejax.main --config=configs/papers/scaling/sparsity.py
Expect:   at each budget the least loss falls from dense to sparsity 32, and
          at equal total parameters a sparse model has the least loss.
Measured: not run.
Differs:  AdamW instead of MuonClip, 4 used experts instead of 8; at the scale
          of a CPU bytes, models of 10^4 to 10^5 active parameters and
          sparsity up to 32.
"""

import functools

from configs import common, isoflop, scaling

PAPER = dict(
  title='Kimi K2: Open Agentic Intelligence',
  arxiv='2507.20534',
  mechanisms=('moe.Moe', 'balance.load', 'scaling.report.isoflop'),
  status='recipe',
)
USED = 4
VARIANTS = {'dense': 1, 'sparsity 2': 2, 'sparsity 8': 8, 'sparsity 32': 32}
SCALES = {
  name: scale | dict(variants=VARIANTS, rates={})
  for name, scale in scaling.SCALES.items()
}


def get_config(arg=None):
  arg, scale = isoflop.parse(arg, SCALES)
  config = isoflop.base(scale)
  config.model = _model(scale, scale['sizes'][0], 1)
  config.labels.update(sparsity=1, shared_experts=0)
  return common.two_steps(config) if arg.smoke else config


def get_hyper(hyper, arg=None):
  del hyper
  arg, scale = isoflop.parse(arg, SCALES)
  return isoflop.grid(scale, functools.partial(_cell, scale), arg.smoke)


def _cell(scale, variant, budget, place):
  size, sparsity = scale['sizes'][place], VARIANTS[variant]
  labels = {'labels.sparsity': sparsity}
  if sparsity > 1:
    labels['labels.shared_experts'] = 1
  return isoflop.cell(
    variant,
    budget,
    _model(scale, size, sparsity),
    peak=scale['peak'] * size[0] ** -0.5,
    activation_ratio=(USED + 1) / (USED * sparsity + 1),
    **labels,
  )


def _model(scale, size, sparsity):
  width = size[0]
  # With the shared one, used experts are about as wide as a dense layer.
  hidden = 2 * width // (USED + 1)
  ffn = common.dense(2 * width)
  if sparsity > 1:
    ffn = common.moe(USED * sparsity, USED, hidden, shared=hidden)
  return isoflop.model(scale, size, ffn)
