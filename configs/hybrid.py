r"""Three layers of linear attention for each of softmax attention.

The layers of `dense.py`, with Kimi Delta Attention in the first three of four.
Its state does not grow: where the layers of `dense.py` keep 512 numbers per
token, one keeps 128 here, and three keep 7,872 per sequence each.

Claim:    no higher a validation loss than configs/dense.py at equal steps.
Command:  python -m moejax.main --config=configs/hybrid.py
Expect:   not run.
Measured: not run.
Differs:  no paper; a house baseline.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  ffn = common.dense(512)
  return common.layers(
    common.baseline(ffn, smoke=arg.smoke),
    common.block(common.kda(6, 32), ffn),
    repeats=3,
    last=common.block(common.attention(6, 2), ffn),
  )
