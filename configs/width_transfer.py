r"""Learning rates by width, with standard and maximal update parametrisation.

Dense and 1/8 sparse models of four widths, equal steps, no weight decay. Both
parametrisations are one model at the base width, which is trained once.
`:width=64` trains one width only.

Claim:    with maximal updates the best rate is that of the base width, for
          mixtures too (2203.03466 fig. 1, 2508.09752).
Command:  python -m moejax.main --config=configs/width_transfer.py
Expect:   the best rate falls with the width under standard parametrisation
          (slope -1 of log2 for hidden matrices), and stays under the other.
Measured: 32 to 128, in log2: dense -1.70 standard and +0.22 maximal, mixtures
          -1.81 and +0.34 (experiments/2026_11_mup_transfer).
Differs:  2 layers, bytes, 200 steps; heads of 16 at all widths.
"""

from configs import common

BASE_WIDTH = 32
WIDTHS = (32, 64, 128, 256)
EXPERTS = {'dense': None, 'moe-1-8': 16}  # of which 2 are active
RATES = tuple(2.0**-power for power in range(8, 2, -1))


def get_config(arg=None):
  arg = _parse(arg)
  config = common.base()
  config.model = _model(BASE_WIDTH, None, False)
  config.optim = common.adamw(RATES[0], weight_decay=0.0)
  config.train.steps, config.train.batch_size = 200, 4
  config.train.seq_len = 128
  config.evaluate.batches = 64
  config.log = dict(every_steps=50, tensorboard=False)
  config.checkpoint = dict(every_steps=200, keep=1)
  config.labels = dict(variant='', width=0, maximal=False, cost=0.0)
  config.sweep.jobs = 2
  return common.two_steps(config) if arg.smoke else config


def get_hyper(hyper, arg=None):
  """One cell for each width, variant, parametrisation and rate."""
  arg = _parse(arg)
  cells = []
  for width in WIDTHS if arg.width is None else (arg.width,):
    for maximal in (False, True)[: 1 if width == BASE_WIDTH else 2]:
      for variant, experts in EXPERTS.items():
        one = {
          'model': _model(width, experts, maximal),
          'losses': {} if experts is None else {'load': 0.01, 'z': 0.001},
          'labels.variant': variant,
          'labels.width': width,
          'labels.maximal': maximal,
          'labels.cost': float(width**2),
        }
        fixed = hyper.zipit([hyper.fixed(k, v) for k, v in one.items()])
        rates = hyper.sweep('optim.schedule.peak', RATES)
        name = f'{variant}-d{width}-{"maximal" if maximal else "standard"}'
        cells += hyper.product([fixed, rates], name=name)
  return cells


def _model(width, experts, maximal):
  """Equal active parameters, whatever the experts."""
  moe = experts and common.moe(experts, k=2, hidden=width)
  layer = common.block(
    common.attention(width // 16), moe or common.dense(2 * width)
  )
  model = common.uniform(layer, 2, vocab=257, width=width)
  if maximal:
    model.parametrization = common.node(
      'optim.MaximalUpdate', base_width=BASE_WIDTH
    )
  return model


def _parse(arg):
  arg = common.parse_arg(arg, width=0, smoke=False)
  if arg.width not in (0, *WIDTHS):
    raise ValueError(f'width={arg.width} must be one of {WIDTHS}.')
  arg.width = arg.width or None
  return arg
