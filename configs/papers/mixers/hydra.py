r"""A state space model with sparse global attention in one of four layers.

Attention reaches all of a document, but each query only the 4 blocks of 16
tokens that it picks. With :facts a gated memory stands beside its experts.

Claim:    sparse attention now and then makes up for what a state forgets, at
          nearly the cost of the state space model.
Command:  python -m moejax.main --config=configs/papers/mixers/hydra.py
          and the same with :state_space, the baseline; with :facts.
Expect:   a lower validation loss than the :state_space form, which has no
          attention.
Measured: not run.
Differs:  a mixture of experts per token, not per chunk, and no workspace. The
          paper is a proposal with no trained model; that attention comes in
          every fourth layer and picks blocks by their mean keys, and that the
          memory of facts stands beside the experts of that layer, is ours.
"""

from configs import common

PAPER = dict(
  title=(
    'Hydra: A 1.6B-Parameter State-Space Language Model with Sparse Attention, '
    'Mixture-of-Experts, and Memory'
  ),
  arxiv='2508.15099',
  mechanisms=(
    'mixers.StateSpace',
    'mixers.rules.ssd',
    'mixers.BlockRouted',
    'memory.GatedProductKey',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, state_space=False, facts=False, smoke=False)
  ffn = common.moe(16, k=2, hidden=256)
  mamba = common.node('mixers.StateSpace', heads=6, state_size=64)
  sparse = common.node(
    'mixers.BlockRouted', heads=6, kv_heads=2, block_tokens=16, k=4
  )
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  facts = common.node(
    'memory.GatedProductKey',
    keys=64,
    k=16,
    heads=4,
    head_dim=32,
    values=common.table(64**2),
  )
  both = common.node('moe.Sum', parts={'experts': ffn, 'facts': facts})
  last = common.block(
    mamba if arg.state_space else sparse, both if arg.facts else ffn
  )
  return common.layers(config, common.block(mamba, ffn), repeats=3, last=last)
