r"""A mixture of 16 experts with the active parameters of `dense.py`.

Two experts of half the dense width for each token, softmax over the chosen,
dropless; 8 times the feed-forward parameters at the same FLOPs but for the
router.

Claim:    a lower validation loss than configs/dense.py at equal steps.
Command:  python -m moejax.main --config=configs/moe.py
Expect:   not run.
Measured: not run.
Differs:  no paper; a house baseline.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  config = common.baseline(common.moe(16, 2, 256), smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  return config
