r"""Layers of experts fold the devices of attention in their own way.

Attention cuts heads over two devices and time over two; a layer of experts
spreads whole experts over all eight.

Claim:    experts over the devices that cut attention's heads and time make
          steps shorter than one folding for both.
Command:  python -m moejax.main --config=configs/papers/systems/folding.py
          --config.mesh.data=1 --config.mesh.expert=2 --config.mesh.context=2
          --config.mesh.tensor=2, and the same with :one, the baseline.
Expect:   the losses of the :one form step by step, within rounding; fewer bytes
          sent, by --mode=aot, as no sum over halves of an expert is left.
Measured: not run; tests/test_folding.py compares foldings with one device.
Differs:  no pipeline, four of the paper's five kinds; time is gathered for
          softmax attention; ids of 272 values, so that they divide; 4 layers of
          width 192 on bytes.
"""

from configs import common

PAPER = dict(
  title=(
    'MoE Parallel Folding: Heterogeneous Parallelism Mappings for Efficient '
    'Large-Scale MoE Model Training with Megatron Core'
  ),
  arxiv='2504.14960',
  mechanisms=(
    'sharding.folded',
    'sharding.layer_of_experts',
    'dispatch.AllToAll',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, one=False, smoke=False)
  ffn = common.moe(
    16, k=2, hidden=256, dispatch=common.node('dispatch.AllToAll')
  )
  config = common.baseline(ffn, smoke=arg.smoke)
  config.model.vocab = 272
  config.losses = {'load': 0.01, 'z': 0.001}
  if not arg.one:
    config.rules = (
      *config.rules,
      ('moe/expert', ('expert', 'context', 'tensor')),
      ('moe/mlp', None),
    )
  return config
