r"""Balance without a loss: a bias per expert that follows the load.

Experts as in `fine_grained.py`; sigmoid affinities. After each step the bias
of an expert with less than the mean load rises by 0.001, that of one with more
falls by as much; it counts for selection only.

Claim:    a lower loss and a more even load than with a balance loss.
Command:  python -m moejax.main --config=configs/papers/routing/bias_balance.py
          and the same with :auxiliary_loss, the baseline.
Expect:   a lower validation loss and a lower moe/load_max_over_mean than the
          :auxiliary_loss form.
Measured: not run.
Differs:  4 layers of width 192 on bytes; with 500 steps a bias can move by 0.5
          at most, where the paper trains for tens of thousands; the baseline's
          balance loss weighs 0.01.
"""

from configs import common

PAPER = dict(
  title='Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts',
  arxiv='2408.15664',
  mechanisms=(
    'balance.bias_update',
    'routers.Router',
    'routers.affinities.sigmoid',
    'routers.weigh.sigmoid',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, auxiliary_loss=False, smoke=False)
  sigmoid = common.node('routers.affinities.sigmoid')
  loss = {'load': common.node('balance.load', affinity=sigmoid)}
  ffn = common.moe(63, k=7, hidden=64, shared=64, balance=loss)
  ffn.router.affinity = sigmoid
  ffn.router.weigh = common.node('routers.weigh.sigmoid', normalise=False)
  ffn.router.selection_bias = not arg.auxiliary_loss
  config = common.baseline(ffn, smoke=arg.smoke)
  # Logged in both forms, so that they can be compared.
  config.losses = {'load': 0.01 if arg.auxiliary_loss else 0.0}
  if not arg.auxiliary_loss:
    config.train.bias_update = common.node('balance.bias_update', rate=1e-3)
  return config
