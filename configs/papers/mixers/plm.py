r"""Latent attention beside a feed-forward of squared ReLU.

Keys and values of all 6 heads are made from a latent of 48, with one rotary
key of 16 that they share; queries have full rank. The rate warms up, stays,
falls to a tenth and stays there to the end.

Claim:    latent attention and squared ReLU lose nothing against grouped
          queries and gated units, at a smaller cache and with most hidden
          units at zero.
Command:  python -m moejax.main --config=configs/papers/mixers/plm.py
          and the same with :grouped, the baseline.
Expect:   the validation loss of the :grouped form, within its standard error
          over seeds.
Measured: not run.
Differs:  4 layers of width 192 on bytes, sizes cut in the published ratios
          (latent a quarter of the width, keys of 2 + 1 parts without and with
          a position); the baseline's cache is 128 numbers a token and layer,
          here it is 64. The published fractions of the schedule are not
          known to us: the fall takes 20 % of the steps and the end 10 %, by a
          straight line to a tenth of the peak (reconstructed). Neither
          fine-tuning nor preference learning.
"""

from configs import common

PAPER = dict(
  title='PLM: Efficient Peripheral Language Models Hardware-Co-Designed for '
  'Ubiquitous Computing',
  arxiv='2503.12167',
  mechanisms=(
    'mixers.Latent',
    'nn.activations.relu_squared',
    'optim.warmup_stable_decay',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, grouped=False, smoke=False)
  # Two matrices of 768 hold what three of 512 do.
  ffn = common.node(
    'moe.Dense',
    expert=common.node(
      'experts.Mlp',
      hidden=768,
      activation=common.node('nn.activations.relu_squared'),
    ),
  )
  config = common.baseline(
    common.dense(512) if arg.grouped else ffn, smoke=arg.smoke
  )
  if not arg.grouped:
    config.model.blocks.block_0.mixer = common.node(
      'mixers.Latent',
      heads=6,
      latent_dim=48,
      nope_dim=32,
      rope_dim=16,
      value_dim=32,
    )
  config.optim.schedule = common.node(
    'optim.warmup_stable_decay',
    peak=2e-3,
    warmup_steps=config.optim.schedule.warmup_steps,
    decay_frac=0.2,
    constant_frac=0.1,
    shape='linear',
    final_frac=0.1,
  )
  return config
