r"""Many small experts, and one that every token shares.

7 of 63 routed experts and 1 shared one, each an eighth of the dense width, so
that the active parameters are those of configs/dense.py but for the router.

Claim:    at equal total and active parameters, smaller experts and a shared
          one lower the loss.
Command:  python -m moejax.main --config=configs/papers/routing/fine_grained.py
          and the same with :coarse, 2 of 16 experts, none shared.
Expect:   a lower validation loss than the :coarse form.
Measured: not run.
Differs:  4 layers of width 192 on bytes, not 9 of width 1280.
"""

from configs import common

PAPER = dict(
  title='DeepSeekMoE: Towards Ultimate Expert Specialization in '
  'Mixture-of-Experts Language Models',
  arxiv='2401.06066',
  mechanisms=(
    'moe.Moe',
    'routers.select.top_k',
    'routers.weigh.softmax',
    'balance.load',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, coarse=False, smoke=False)
  balance = {'load': common.node('balance.load')}
  if arg.coarse:
    ffn = common.moe(16, k=2, hidden=256, balance=balance)
  else:
    ffn = common.moe(63, k=7, hidden=64, shared=64, balance=balance)
  # A weight is the share of the softmax over all routed experts.
  ffn.router.weigh.normalise = False
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01}
  return config
