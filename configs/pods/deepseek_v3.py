r"""DeepSeek-V3 as published: latent attention, 256 experts and a shared one.

Claim:    671.0B parameters, without the extra layer that predicts a second
          token; the training step fits 1,024 chips of v5p.
Command:  python -m moejax.main --mode=aot --topology=v5p:8x8x16
          --config=configs/pods/deepseek_v3.py
Expect:   exit code 0: memory within a chip's.
Measured: 36.4 of 95.7 GiB of a chip, compiled in 212 s
          (experiments/2026_11_pod_aot).
Differs:  rows of 4,096 tokens, one for each chip; bf16 where the paper has fp8;
          no prediction of a second token; no balance loss of a sequence.
"""

from configs import common

PUBLISHED = dict(
  vocab=129_280,
  width=7168,
  dense=18_432,
  experts=dict(num_experts=256, k=8, hidden=2048, shared=2048),
  layers=58,
  latent=dict(
    heads=128,
    latent_dim=512,
    nope_dim=128,
    rope_dim=64,
    value_dim=128,
    query_latent_dim=1536,
  ),
)
SMOKE = dict(
  vocab=257,
  width=64,
  dense=128,
  experts=dict(num_experts=16, k=2, hidden=16, shared=16),
  layers=2,
  latent=dict(
    heads=2,
    latent_dim=32,
    nope_dim=16,
    rope_dim=8,
    value_dim=16,
    query_latent_dim=32,
  ),
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  sizes = SMOKE if arg.smoke else PUBLISHED
  ffn = common.moe(**sizes['experts'], balance=None)
  ffn = common.sigmoid_router(ffn, scale=2.5)
  ffn.dispatch = common.node('dispatch.AllToAll', keep_first=False)
  ffn.router.select = common.node(
    'routers.select.group_limited', num_groups=8, kept_groups=4
  )
  mixer = common.node('mixers.Latent', **sizes['latent'])
  dense = common.block(mixer, common.dense(sizes['dense']))
  config = common.base()
  config.model = common.node(
    'model.Model',
    vocab=sizes['vocab'],
    width=sizes['width'],
    blocks={'dense': dense, 'sparse': common.block(mixer, ffn)},
    prefix=('dense',) * 3,
    pattern=('sparse',),
    repeats=sizes['layers'],
    tied=False,
  )
  config.train.bias_update = common.node('balance.bias_update', rate=1e-3)
  config.checkpoint.every_steps = 500
  if arg.smoke:
    return common.two_steps(config)
  return common.pod(config, expert=64, fsdp=16)
