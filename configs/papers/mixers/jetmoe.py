r"""Experts in attention and in the feed-forward, both picked by routers.

A token picks 2 of 8 attention experts, each a query and an output projection
of 3 heads over shared keys and values, and 2 of 8 feed-forward experts.

Claim:    sparse attention beside sparse feed-forwards lowers the loss at equal
          FLOPs.
Command:  python -m moejax.main --config=configs/papers/mixers/jetmoe.py
          and the same with :dense_attention, the baseline.
Expect:   a lower validation loss than the :dense_attention form, whose active
          parameters are the same but for the routers.
Measured: not run.
Differs:  4 layers of width 192 on bytes, not 24 of width 2048; heads of 32,
          not 128; no bias after the sum over experts; queries and keys are
          not normalised, as published, and the baseline's are not either.
"""

from configs import common

PAPER = dict(
  title='JetMoE: Reaching Llama2 Performance with 0.1M Dollars',
  arxiv='2404.07413',
  mechanisms=(
    'mixers.AttentionExperts',
    'moe.Moe',
    'balance.load',
    'balance.z',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, dense_attention=False, smoke=False)
  ffn = common.moe(8, k=2, hidden=256)
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  block = config.model.blocks.block_0
  if arg.dense_attention:
    block.mixer = common.attention(6, 3, qk_norm=False)
    return config
  terms = {'mixer_load': 'balance.load', 'mixer_z': 'balance.z'}
  block.mixer = common.node(
    'mixers.AttentionExperts',
    router=ffn.router.copy_and_resolve_references(),
    num_experts=8,
    kv_heads=3,
    head_dim=32,
    balance={name: common.node(kind) for name, kind in terms.items()},
  )
  config.losses.update({'mixer_load': 0.01, 'mixer_z': 0.001})
  return config
