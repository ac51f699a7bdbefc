r"""Sparsity at equal compute: parameters against FLOPs.

A token uses 4 experts of a fixed width and a shared one, out of 4 to 128. Each
budget is spent by several sizes at each sparsity, so that one table has both
views: equal active parameters with more experts, and equal total parameters
with fewer FLOPs for each token (the column params_total). `:scale=pod` for
accelerators, `:seeds=3` for standard errors.

Claim:    at equal active parameters and compute the loss falls as sparsity,
          experts per used one, grows; 48 needs 1.69, 1.39 and 1.15 times fewer
          FLOPs than 8, 16 and 32 for the same loss.
Command:  python -m moejax.main --config=configs/papers/scaling/sparsity.py
Expect:   at each budget the least loss falls from sparsity 1 to 32, and at
          equal total parameters the best sparsity is above 1.
Measured: not run.
Differs:  AdamW instead of MuonClip, 4 used experts instead of 8; at the scale
          of a CPU bytes, models of 10^4 to 10^5 active parameters and
          sparsity up to 32.
"""

from configs import common, scaling

PAPER = dict(
  title='Kimi K2: Open Agentic Intelligence',
  arxiv='2507.20534',
  mechanisms=('moe.Moe', 'balance.load', 'scaling.report.isoflop'),
  status='recipe',
)
USED = 4
SPARSITIES = (1, 2, 8, 32)


def get_config(arg=None):
  arg = _parse(arg)
  config = scaling.get_config(f'scale={arg.scale},smoke={arg.smoke}')
  config.model = _model(scaling.SCALES[arg.scale], config.model.width, 2, 2)
  config.losses = {'load': 0.01, 'z': 0.001}
  config.labels.update(sparsity=2.0, granularity=5.0, shared_experts=1)
  return config


def get_hyper(hyper, arg=None):
  """One cell for each sparsity, budget, size and seed."""
  arg = _parse(arg)
  scale = scaling.SCALES[arg.scale]
  made = [
    _cell(scale, sparsity, budget, scale['sizes'][size], seed)
    for sparsity in SPARSITIES
    for budget, sizes in scale['budgets'].items()
    for size in sizes
    for seed in range(arg.seeds)
  ]
  fixed = [[hyper.fixed(k, v) for k, v in cell.items()] for cell in made]
  return hyper.chainit(map(hyper.zipit, fixed))


def _cell(scale, sparsity, budget, size, seed):
  width, layers = size
  return {
    'name': f'S{sparsity}-C{budget:.1e}-d{width}L{layers}-{seed}',
    'seed': seed,
    'model': _model(scale, width, layers, sparsity),
    'optim.schedule.peak': scale['peak'] * width**-0.5,
    'train.budget_flops': budget,
    'labels.variant': f'sparsity {sparsity}',
    'labels.budget_flops': budget,
    'labels.activation_ratio': (USED + 1) / (USED * sparsity + 1),
    'labels.granularity': 2 * width / _hidden(width),
    'labels.shared_experts': 1,
    'labels.sparsity': float(sparsity),
    'labels.cost': budget * (2.0 + sparsity / 8),
  }


def _model(scale, width, layers, sparsity):
  hidden = _hidden(width)
  ffn = common.moe(USED * sparsity, USED, hidden, shared=hidden)
  mixer = common.attention(width // scale['head_dim'])
  layer = common.block(mixer, ffn)
  return common.uniform(layer, layers, width=width, **scale['fields'])


def _hidden(width):
  """Five experts together are about as wide as a dense layer, 2 * width."""
  return 2 * width // (USED + 1)


def _parse(arg):
  return common.parse_arg(arg, scale='cpu', seeds=1, smoke=False)
