r"""Latent attention, and experts of few nodes for each token.

Experts are on four nodes; a token may use those of two, and its row travels to
each of these once, then on within the node.

Claim:    routing limited to few nodes costs no quality and spares the links
          between nodes; latent attention spares the cache.
Command:  python -m moejax.main --config=configs/papers/systems/node_limited.py
          --config.mesh.data=1 --config.mesh.node=4 --config.mesh.expert=2
          and the same with :free, the baseline.
Expect:   the validation loss of the :free form, within its standard error over
          seeds; moe/exchange_crossings of at most 2.
Measured: not run; configs/pods/deepseek_v3.py has the published shape.
Differs:  no prediction of a second token; float32, or bf16 by flag, where the
          paper trains in fp8; its public class is not compared with; no balance
          loss of a sequence; 4 layers of width 192 on bytes.
"""

from configs import common

PAPER = dict(
  title=(
    'Insights into DeepSeek-V3: Scaling Challenges and Reflections on Hardware '
    'for AI Architectures'
  ),
  arxiv='2505.09343',
  mechanisms=(
    'mixers.Latent',
    'routers.select.group_limited',
    'dispatch.TwoHops',
    'balance.bias_update',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, free=False, smoke=False)
  ffn = common.moe(32, k=6, hidden=64, shared=128, balance=None)
  ffn = common.sigmoid_router(ffn, scale=2.5)
  ffn.dispatch = common.node('dispatch.TwoHops')
  if not arg.free:
    ffn.dispatch.nodes_per_token = 2
    ffn.router.select = common.node(
      'routers.select.group_limited', num_groups=4, kept_groups=2
    )
  config = common.baseline(ffn, smoke=arg.smoke)
  config.model.blocks.block_0.mixer = common.node(
    'mixers.Latent',
    heads=6,
    latent_dim=64,
    nope_dim=32,
    rope_dim=16,
    value_dim=32,
  )
  config.losses = {}
  config.train.bias_update = common.node('balance.bias_update', rate=1e-3)
  config.mesh.node = 1
  own = {
    'batch': ('data', 'fsdp', 'node', 'expert'),
    'expert': ('node', 'expert'),
  }
  config.rules = tuple((n, own.get(n, to)) for n, to in config.rules)
  return config
