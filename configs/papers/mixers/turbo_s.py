r"""Mamba-2 layers with experts, and attention before some of them.

Blocks are attention, Mamba-2, feed-forward (AMF) or Mamba-2, feed-forward
(MF), each part with its own residual; one shared expert and two of 32.

Claim:    few attention layers suffice, and the cache is theirs alone.
Command:  python -m moejax.main --config=configs/papers/mixers/turbo_s.py
          and the same with :attention, the baseline.
Expect:   a lower validation loss than the :attention form, which has
          attention in place of Mamba-2.
Measured: not run.
Differs:  AMF, MF, MF, MF of width 192 on bytes, where the paper has 128 layers
          of width 5120: 7 of attention, 57 of Mamba-2 and 64 feed-forwards,
          by numbers that AMF and MF alone do not add up to; the order, the
          state size of 64 and the 2 groups in place of 16 are ours. No public
          code to compare with.
"""

from configs import common

PAPER = dict(
  title=(
    'Hunyuan-TurboS: Advancing Large Language Models through Mamba-Transformer '
    'Synergy and Adaptive Chain-of-Thought'
  ),
  arxiv='2505.15431',
  mechanisms=('mixers.StateSpace', 'mixers.rules.ssd', 'mixers.Attention'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, attention=False, smoke=False)
  experts = common.moe(32, k=2, hidden=168, shared=168)
  attention = common.attention(6, 2)
  mamba = common.node('mixers.StateSpace', heads=6, state_size=64, groups=2)
  mixer = attention if arg.attention else mamba
  config = common.baseline(experts, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  return common.layers(
    config,
    common.block(mixer, experts),
    repeats=4,
    first=common.block(attention, None),
  )
