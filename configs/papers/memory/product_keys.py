r"""A memory with product keys in place of one feed-forward.

Claim:    a model with a memory beats a deeper one without, at the same speed.
Command:  python -m moejax.main --config=configs/papers/memory/product_keys.py
Expect:   a lower validation loss than configs/dense.py.
Measured: not run.
Differs:  a causal byte model of 4 layers of width 192; 128^2 slots in place of
          512^2, in the third layer; queries and keys are RMS-normalised in
          place of a batch norm; the table has 4 times the learning rate, not
          one of its own.
"""

from configs import common

PAPER = dict(
  title='Large Memory Layers with Product Keys',
  arxiv='1907.05242',
  mechanisms=('memory.ProductKey',),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  memory = common.node(
    'memory.ProductKey',
    keys=128,
    k=32,
    heads=4,
    head_dim=64,
    values=common.table(128**2),
  )
  ffns = [common.dense(512)] * 4
  ffns[2] = memory
  config = common.baseline(*ffns, smoke=arg.smoke)
  config.optim.groups = (('values/rows$', {'lr_scale': 4.0}),)
  return config
