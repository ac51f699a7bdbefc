r"""Three layers of linear attention for each of softmax attention.

The layers of `moe.py`; Kimi Delta Attention mixes tokens in the first three
of four. Their state does not grow: 4 of `moe.py`'s layers keep 512 numbers per
token, here one keeps 128 and three keep 7,872 per sequence each.

Claim:    no higher a validation loss than configs/moe.py at equal steps.
Command:  python -m moejax.main --config=configs/hybrid.py
Expect:   not run.
Measured: not run.
Differs:  no paper; a house baseline.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  ffn = common.moe(16, 2, 256)
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  return common.layout(
    config,
    *('linear', 'linear', 'linear', 'softmax'),
    linear=common.block(common.kda(6, 32), ffn),
    softmax=common.block(common.attention(6, 2), ffn),
  )
