r"""Experts of a single neuron, 16,384 in place of one feed-forward.

Claim:    a lower loss than dense, coarse mixtures and product-key memories at
          equal FLOPs.
Command:  python -m moejax.main --config=configs/papers/memory/single_neurons.py
Expect:   a lower validation loss than configs/papers/memory/product_keys.py
          and configs/dense.py.
Measured: at width 64 0.023 ± 0.005 above a mixture of 2 of 8 experts, three
          seeds, and level with it when asked for what was told in rounds:
          experiments/2026_11_memory_trends.
Differs:  a byte model of 4 layers of width 192; 128^2 experts in place of
          1024^2, 8 heads of 16, in the third layer; queries and keys are
          RMS-normalised in place of a batch norm.
"""

from configs import common

PAPER = dict(
  title='Mixture of A Million Experts',
  arxiv='2407.04153',
  mechanisms=('memory.SingleNeuron',),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  memory = common.node(
    'memory.SingleNeuron',
    keys=128,
    k=16,
    heads=8,
    head_dim=64,
    values=common.table(128**2),
    pre_values=common.table(128**2),
  )
  ffns = [common.dense(512)] * 4
  ffns[2] = memory
  return common.baseline(*ffns, smoke=arg.smoke)
