r"""A mixture of 16 experts with the active parameters of `dense.py`.

Two experts of half the dense width for each token, softmax over the chosen,
dropless; 8 times the feed-forward parameters at the same FLOPs but for the
router. With :pipeline each of the four layers is a stage, on a multiple of four
devices.

Claim:    a lower validation loss than configs/dense.py at equal steps.
Command:  python -m moejax.main --config=configs/moe.py
Expect:   not run.
Measured: not run.
Differs:  no paper; a house baseline.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(arg, pipeline=False, smoke=False)
  config = common.baseline(common.moe(16, 2, 256), smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  if arg.pipeline:
    microbatches = 4 if arg.smoke else 8
    common.pipeline(config, stages=4, microbatches=microbatches)
  return config
