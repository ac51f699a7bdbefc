"""Grids of IsoFLOP sweeps: what the recipes of scaling laws share.

A scale is a dict. What is read here: `budgets`, training FLOPs -> places in
`sizes`; `variants`, whose keys are their names; `batch`, (rows, tokens of a
row); `seeds`, how many; `decline`, (budget, exponent) of the learning rate,
which falls as that power of the budget; `rates`, budget -> the size whose
learning rate, undeclined, and batch are varied for the variants in `rated`;
`pod`, whether it wants one; `head_dim` and `fields`, of the models;
`plan`, a node that chooses among the cells (or checks them, without `choose`);
`report`, None for none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common

Cell = dict[str, Any]


def plan(kind: str = 'Plan', /, **fields: Any) -> ConfigDict:
  """A node of moejax/scaling/plan."""
  return common.node(f'scaling.plan.{kind}', **fields)


def parse(
  arg: str | None, scales: Mapping[str, dict]
) -> tuple[ConfigDict, dict]:
  """The recipe's argument, and its scale; one size a budget for `smoke`."""
  arg = common.parse_arg(arg, scale='cpu', smoke=False)
  if arg.scale not in scales:
    raise ValueError(f'scale={arg.scale!r} must be one of {tuple(scales)}.')
  scale = scales[arg.scale]
  if arg.smoke:
    budgets = {c: sizes[:1] for c, sizes in scale['budgets'].items()}
    scale = scale | dict(budgets=budgets, seeds=1, rates={}, plan=None)
  return arg, scale


def model(scale: dict, size: tuple[int, int], ffn: ConfigDict) -> ConfigDict:
  """Attention and `ffn` in every layer; `size` is (width, layers)."""
  width, layers = size
  layer = common.block(common.attention(width // scale['head_dim']), ffn)
  return common.uniform(layer, layers, width=width, **scale['fields'])


def base(scale: dict) -> ConfigDict:
  """The config that the cells override, for this machine or for a pod.

  A run of role 'law' is fitted; those of role 'rates' vary the learning rate
  and the batch, to show where their best is.
  """
  config = common.base()
  config.train.steps, config.train.budget_flops = None, min(scale['budgets'])
  config.train.batch_size, config.train.seq_len = scale['batch']
  config.labels = dict(
    variant='dense',
    budget_flops=0.0,
    activation_ratio=1.0,
    cost=0.0,  # expected time to train, in any unit
    role='law',
    peak_lr=0.0,
    batch_tokens=0,
  )
  report = common.node('scaling.report.isoflop')
  config.sweep.report = scale.get('report', report)
  config.sweep.plan = scale.get('plan')
  if scale.get('pod'):
    config.data = common.text_of('data')
    config.mesh.expert = 8
    config.checkpoint.every_steps = 500
  else:
    config.evaluate.batches = 128
    config.log = dict(every_steps=100, tensorboard=False)
    config.sweep.jobs = 2
  return config


def cell(
  variant: str,
  budget: float,
  model: ConfigDict,
  *,
  peak: float,
  activation_ratio: float = 1.0,
  **more: Any,
) -> Cell:
  """The overrides of one run.

  Args:
    variant: what a law is fitted for; part of the cell's name, as are the
      budget and the model's width and layers.
    budget: training FLOPs.
    model: the model.
    peak: learning rate.
    activation_ratio: active experts of all, 1 for a dense model.
    **more: fields of the config, or labels, by their path.
  """
  sparse = activation_ratio < 1
  size = f'd{model.width}L{model.repeats * len(model.pattern)}'
  name = f'{variant}-C{budget:.1e}-{size}'
  return {
    'name': name.replace(' ', '-').replace('/', '-'),
    'model': model,
    'losses': {'load': 0.01, 'z': 0.001} if sparse else {},
    'optim.schedule.peak': peak,
    'train.budget_flops': budget,
    'labels.variant': variant,
    'labels.budget_flops': budget,
    'labels.activation_ratio': activation_ratio,
    'labels.cost': budget * (2.0 if sparse else 1.0),
    **more,
  }


def grid(
  scale: dict, make: Callable[[str, float, int], Cell], smoke: bool
) -> list[Cell]:
  """One cell for each variant, budget, size and seed, and those of `rates`.

  Args:
    scale: see above.
    make: (variant, budget, place in `sizes`) -> cell.
    smoke: whether the steps of the config stay as they are.
  """
  cells = [
    _seeded(make(variant, budget, size), scale['decline'], seed)
    for variant in scale['variants']
    for budget, sizes in scale['budgets'].items()
    for size in sizes
    for seed in range(scale['seeds'])
  ]
  cells += [
    _varied(make(variant, budget, size), scale['batch'], share, factor)
    for variant in scale.get('rated', ())
    for budget, size in scale['rates'].items()
    for share in (1 / 2, 1, 2)
    for factor in (1 / 4, 1 / 2, 1, 2)
  ]
  for one in cells if smoke else ():
    del one['train.budget_flops']
  return cells


def _seeded(one: Cell, decline, seed: int) -> Cell:
  at, exponent = decline
  share = (one['labels.budget_flops'] / at) ** -exponent
  one = one | {'optim.schedule.peak': one['optim.schedule.peak'] * share}
  return one | {'name': f'{one["name"]}-s{seed}', 'seed': seed} if seed else one


def _varied(one: Cell, batch, share: float, factor: float) -> Cell:
  rows, peak = int(batch[0] * share), one['optim.schedule.peak'] * factor
  return one | {
    'name': f'{one["name"]}-b{rows}-x{factor:g}',
    'train.batch_size': rows,
    'optim.schedule.peak': peak,
    'labels.role': 'rates',
    'labels.peak_lr': peak,
    'labels.batch_tokens': rows * batch[1],
  }
