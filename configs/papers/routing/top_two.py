r"""Two of eight gated experts in every layer, without capacity.

Claim:    a sparse model beats a dense one that costs as much per token.
Command:  python -m moejax.main --config=configs/papers/routing/top_two.py
Expect:   a lower validation loss than configs/dense.py, at the same active
          parameters but for the router.
Measured: not run.
Differs:  4 layers of width 192 on bytes, not 32 of width 4096; queries and
          keys are normalised; the paper does not give its balance loss, here
          it weighs 0.01.
"""

from configs import common

PAPER = dict(
  title='Mixtral of Experts',
  arxiv='2401.04088',
  mechanisms=(
    'routers.select.top_k',
    'routers.weigh.softmax',
    'dispatch.Sort',
    'experts.Glu',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  balance = {'load': common.node('balance.load')}
  ffn = common.moe(8, k=2, hidden=256, balance=balance)
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01}
  return config
