r"""Attention heads as experts: some shared, the others picked by a router.

Of 8 heads 2 are shared and 4 of the other 6 are picked, 75 % in all; outputs
are weighed instead of added up.

Claim:    as good as all heads, with three quarters of them.
Command:  python -m moejax.main --config=configs/papers/mixers/head_mixture.py
          and the same with :all_heads, the baseline.
Expect:   the validation loss of the :all_heads form or a lower one.
Measured: not run.
Differs:  4 layers of width 192 on bytes; all heads are computed, so that what
          is shown is quality, not speed; the balance loss here is a k-th of
          the published one, and its weight k times 0.01.
"""

from configs import common

PAPER = dict(
  title='MoH: Multi-Head Attention as Mixture-of-Head Attention',
  arxiv='2410.11842',
  mechanisms=(
    'mixers.Attention',
    'mixers.gates.HeadMixture',
    'routers.Router',
    'balance.load',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, all_heads=False, smoke=False)
  config = common.baseline(common.dense(512), smoke=arg.smoke)
  mixer = config.model.blocks.block_0.mixer = common.attention(8)
  if arg.all_heads:
    return config
  mixer.gate = common.node(
    'mixers.gates.HeadMixture',
    shared=2,
    router=common.moe(6, k=4, hidden=1).router,
    balance={'heads_load': common.node('balance.load')},
  )
  config.losses = {'heads_load': 0.04}
  return config
