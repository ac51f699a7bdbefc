r"""Kimi Linear 48B-A3B as published: three layers of KDA for one of latents.

Claim:    49.1B parameters; the training step fits a v5p slice of 16 chips.
Command:  python -m moejax.main --mode=aot --topology=v5p:2x2x4
          --config=configs/pods/kimi_linear.py
Expect:   exit code 0: memory within a chip's.
Measured: 63.4 of 95.7 GiB of a chip, compiled in 224 s
          (experiments/2026_11_pod_aot).
Differs:  rows of 4,096 tokens, one for each chip; AdamW in place of Muon.
"""

from configs import common

PUBLISHED = dict(
  vocab=163_840,
  width=2304,
  dense=9216,
  experts=dict(num_experts=256, k=8, hidden=1024, shared=1024),
  kda=(32, 128),
  latent=dict(
    heads=32, latent_dim=512, nope_dim=128, rope_dim=64, value_dim=128
  ),
  repeats=6,
)
SMOKE = dict(
  vocab=257,
  width=64,
  dense=128,
  experts=dict(num_experts=16, k=2, hidden=16, shared=16),
  kda=(2, 16),
  latent=dict(heads=2, latent_dim=32, nope_dim=16, rope_dim=8, value_dim=16),
  repeats=1,
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  sizes = SMOKE if arg.smoke else PUBLISHED
  ffn = common.moe(**sizes['experts'], balance=None)
  ffn = common.sigmoid_router(ffn, scale=2.446)
  ffn.dispatch = common.node('dispatch.AllToAll', keep_first=False)
  kda = common.kda(*sizes['kda'])
  latent = common.node('mixers.Latent', rope_theta=None, **sizes['latent'])
  config = common.base()
  config.model = common.node(
    'model.Model',
    vocab=sizes['vocab'],
    width=sizes['width'],
    blocks={
      'first': common.block(kda, common.dense(sizes['dense'])),
      'linear': common.block(kda, ffn),
      'softmax': common.block(latent, ffn),
    },
    # Every fourth layer is one of latents, and so is the last, the 27th.
    prefix=('first',),
    pattern=('linear', 'linear', 'softmax', 'linear'),
    repeats=sizes['repeats'],
    suffix=('linear', 'softmax'),
    tied=False,
  )
  config.train.bias_update = common.node('balance.bias_update', rate=1e-3)
  config.checkpoint.every_steps = 500
  if arg.smoke:
    return common.two_steps(config)
  return common.pod(config, expert=16, fsdp=1)
