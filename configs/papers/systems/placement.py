r"""Experts on ranks by load, and by where tokens go next.

What the routers of a trained model chose (`analyze.routing.choices`, and its
`transitions` between layers) goes to an integer programme, or to greedy packing
by load alone, of groups onto nodes first where devices have such; `permute`
brings the model into the order that comes out.

Claim:    the busiest rank has less to do and fewer tokens change ranks than
          with experts in their order.
Command:  python -m moejax.main --config=configs/papers/systems/placement.py
Expect:   with eight ranks, a lower load of the busiest one than by order, and
          than by packing no more tokens that change ranks between layers.
Measured: not run at this size; tests/placement compare each programme with the
          best of all orders.
Differs:  layer after layer, each to its optimum, where the paper clusters all
          layers and then assigns clusters; equal experts on all ranks of every
          layer; no cost of single links; no copies of experts in training.
"""

from configs import common

PAPER = dict(
  title=(
    'MoETuner: Optimized Mixture of Expert Serving with Balanced Expert '
    'Placement and Token Routing'
  ),
  arxiv='2502.06643',
  mechanisms=(
    'placement.programme',
    'placement.pack',
    'placement.pack_nodes',
    'placement.permute',
    'analyze.routing.transitions',
  ),
  status='mechanism',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  ffn = common.moe(16, k=2, hidden=256)
  config = common.baseline(ffn, smoke=arg.smoke)
  # As weak as in the models that are served: loads differ.
  config.losses = {'load': 0.001, 'z': 0.001}
  return config
