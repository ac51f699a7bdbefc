r"""One expert per token, within a capacity.

Every other feed-forward is 16 experts, each as wide as the dense one it
replaces, so that the FLOPs per token are those of configs/dense.py.

Claim:    at equal FLOPs per token a lower loss than the dense model, and one
          expert per token is enough.
Command:  python -m moejax.main --config=configs/papers/routing/switch.py
Expect:   a lower validation loss than configs/dense.py.
Measured: not run.
Differs:  a causal byte model of 4 layers, not an encoder-decoder; 16 experts,
          gated; no jitter at the router's input, no dropout within experts,
          usual initial scale.
"""

from configs import common

PAPER = dict(
  title='Switch Transformers: Scaling to Trillion Parameter Models with '
  'Simple and Efficient Sparsity',
  arxiv='2101.03961',
  mechanisms=(
    'routers.select.top_k',
    'routers.weigh.softmax',
    'dispatch.Einsum',
    'balance.load',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  sparse = common.moe(16, k=1, hidden=512)
  # One choice, normalised, would always weigh 1 and teach the router nothing.
  sparse.router.weigh.normalise = False
  sparse.dispatch = common.node(
    'dispatch.Einsum', capacity_factor=1.25, group_tokens=256
  )
  sparse.balance = {'load': common.node('balance.load')}
  config = common.baseline(common.dense(512), sparse, smoke=arg.smoke)
  config.losses = {'load': 0.01}
  # What is decoded comes a token at a time: nothing to share a capacity with.
  dispatch = 'model.blocks.block_1.ffn.dispatch'
  config.infer.overlay = ((dispatch, common.node('dispatch.Sort')),)
  return config
