r"""Four memories of the gated delta rule, two of them for each token.

Every token also writes and reads a shared memory. A memory's keys, values,
write strengths and decays have matrices of their own.

Claim:    a lower loss than one memory, most of all where much must be recalled.
Command:  python -m moejax.main --config=configs/papers/mixers/memories.py
          and the same with :memories=1, where each token uses that one and the
          shared one; configs/papers/mixers/gated_delta.py.
Expect:   a lower validation loss than either.
Measured: not run.
Differs:  4 layers of width 192 on bytes; heads of 32 by 64 in place of 256 by
          256 numbers; projections start with variance 1 / fan-in, rates
          uniform in (0.01, 16). Convolutions do not run from one memory's
          tokens into another's. Next to gated_delta.py it has 5 times the
          states, keys' and values' matrices, 3 times as many of them active.
"""

from configs import common

PAPER = dict(
  title='MoM: Linear Sequence Modeling with Mixture-of-Memories',
  arxiv='2502.13685',
  mechanisms=(
    'mixers.MixtureOfMemories',
    'mixers.rules.gated_delta',
    'routers.select.top_k',
    'routers.weigh.softmax',
    'balance.load',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, memories=4, smoke=False)
  router = common.node(
    'routers.Router',
    score=common.node('routers.scores.Linear', num_experts=arg.memories),
    k=min(2, arg.memories),
    select=common.node('routers.select.top_k'),
    weigh=common.node('routers.weigh.softmax'),
  )
  config = common.baseline(common.dense(512), smoke=arg.smoke)
  config.model.blocks.block_0.mixer = common.node(
    'mixers.MixtureOfMemories',
    router=router,
    heads=4,
    head_dim=32,
    value_dim=64,
    norm_epsilon=1e-5,
    balance={'load': common.node('balance.load')},
  )
  config.losses = {'load': 0.01}
  return config
