r"""A dense model: what every sparse one is compared with.

Claim:    none; the baseline at 1.6M parameters, embeddings left out.
Command:  python -m moejax.main --config=configs/dense.py
Expect:   not run.
Measured: not run.
Differs:  no paper; a house baseline.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  return common.baseline(common.dense(512), smoke=arg.smoke)
