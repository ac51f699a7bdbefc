r"""Three layers of Kimi Delta Attention for each of latent attention.

Latent attention has no positions; the linear layers see order by themselves.
A first dense layer, then experts chosen by sigmoid and a bias, one shared.

Claim:    a lower loss than latent attention in all layers, and a quarter of
          its cache.
Command:  python -m moejax.main --config=configs/papers/mixers/kimi_linear.py
          and the same with :latent, the baseline.
Expect:   a lower validation loss than the :latent form.
Measured: not run; both mixers equal transformers' to 1e-5 (tests/parity).
Differs:  4 layers of width 192 on bytes, where the paper has 27 of width 2304:
          7 of 32 experts in place of 8 of 256, heads of 32 in place of 128
          numbers, a latent of 64 + 16 in place of 512 + 64; the projections
          start with variance 1 / fan-in.
"""

from configs import common

PAPER = dict(
  title='Kimi Linear: An Expressive, Efficient Attention Architecture',
  arxiv='2510.26692',
  mechanisms=(
    'mixers.LinearAttention',
    'mixers.rules.kda',
    'mixers.decays.Softplus',
    'mixers.gates.Gate',
    'mixers.Latent',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, latent=False, smoke=False)
  experts = common.moe(32, k=7, hidden=64, shared=64, balance=None)
  experts = common.sigmoid_router(experts, scale=2.446)
  config = common.baseline(experts, smoke=arg.smoke)
  config.train.bias_update = common.node('balance.bias_update', rate=1e-3)
  latent = common.node(
    'mixers.Latent',
    heads=6,
    latent_dim=64,
    nope_dim=32,
    rope_dim=16,
    value_dim=32,
    rope_theta=None,
  )
  mixer = latent if arg.latent else common.kda(6, 32)
  return common.layers(
    config,
    common.block(mixer, experts),
    repeats=2,
    first=common.block(mixer, common.dense(512)),
    last=common.block(latent, experts),
  )
