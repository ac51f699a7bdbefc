r"""Mixtral 8x22B as published: 56 layers of 8 experts, two for each token.

Claim:    140.6B parameters; the training step fits a v5p slice of 32 chips.
Command:  python -m moejax.main --mode=aot --topology=v5p:2x4x4
          --config=configs/pods/mixtral_8x22b.py
Expect:   exit code 0: memory within a chip's.
Measured: 87.4 of 95.7 GiB of a chip, compiled in 123 s
          (experiments/2026_11_pod_aot).
Differs:  rows of 4,096 tokens, one for each chip; the balance loss weighs 0.01.
"""

from configs import common

PUBLISHED = dict(
  vocab=32_768, width=6144, heads=48, kv_heads=8, hidden=16_384, layers=56
)
SMOKE = dict(vocab=257, width=64, heads=4, kv_heads=2, hidden=64, layers=2)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  sizes = SMOKE if arg.smoke else PUBLISHED
  load = {'load': common.node('balance.load')}
  ffn = common.moe(8, k=2, hidden=sizes['hidden'], balance=load)
  ffn.dispatch = common.node('dispatch.AllToAll', keep_first=False)
  mixer = common.attention(
    sizes['heads'], sizes['kv_heads'], qk_norm=False, rope_theta=1e6
  )
  config = common.base()
  config.model = common.uniform(
    common.block(mixer, ffn),
    sizes['layers'],
    vocab=sizes['vocab'],
    width=sizes['width'],
    tied=False,
  )
  config.losses = {'load': 0.01}
  config.checkpoint.every_steps = 500
  if arg.smoke:
    return common.two_steps(config)
  return common.pod(config, expert=8, fsdp=4)
