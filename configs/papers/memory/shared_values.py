r"""Gated memories in two layers that share one table of values.

Keys and queries are each layer's own.

Claim:    a lower loss than a dense model with more than twice the compute, most
          of all on facts.
Command:  python -m moejax.main --config=configs/papers/memory/shared_values.py
Expect:   a lower validation loss than configs/dense.py.
Measured: not run.
Differs:  a byte model of 4 layers of width 192 with memories in the second and
          the fourth; 128^2 slots in place of 1024^2; the table has 4 times the
          learning rate, not one of its own.
"""

from configs import common

PAPER = dict(
  title='Memory Layers at Scale',
  arxiv='2412.09764',
  mechanisms=('memory.GatedProductKey', 'memory.tables.Window'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  memory = common.node(
    'memory.GatedProductKey',
    keys=128,
    k=32,
    heads=4,
    head_dim=64,
    values=common.node('memory.tables.Window', of='values'),
  )
  config = common.baseline(common.dense(512), memory, smoke=arg.smoke)
  config.model.shared = {'values': common.table(128**2)}
  config.optim.groups = (('shared_values', {'lr_scale': 4.0}),)
  return config
