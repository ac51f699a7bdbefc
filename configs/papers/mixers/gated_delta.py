r"""The gated delta rule in every layer.

Keys replace what they held, and each head forgets at a rate of its own that
the token sets.

Claim:    a lower loss than Mamba-2 and than the delta rule without decay.
Command:  python -m moejax.main --config=configs/papers/mixers/gated_delta.py
          and the same with :delta; configs/papers/mixers/mamba.py.
Expect:   a lower validation loss than either.
Measured: not run; the layer equals transformers' of Qwen3-Next to 1e-5
          (tests/parity).
Differs:  4 layers of width 192 on bytes; heads of 32 by 64 in place of 256 by
          512 numbers; rates start uniform in (0.01, 16), away from 0, whose
          logarithm is not finite; the projections start with variance 1 /
          fan-in. The :delta form has the output gate, too.
"""

from configs import common

PAPER = dict(
  title='Gated Delta Networks: Improving Mamba2 with Delta Rule',
  arxiv='2412.06464',
  mechanisms=(
    'mixers.LinearAttention',
    'mixers.rules.gated_delta',
    'mixers.rules.delta',
    'mixers.decays.Softplus',
    'mixers.gates.Gate',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, delta=False, smoke=False)
  decay = common.node('mixers.decays.Softplus', rates=(0.01, 16.0))
  silu = common.node('nn.activations.silu')
  mixer = common.node(
    'mixers.LinearAttention',
    heads=4,
    head_dim=32,
    value_dim=64,
    rule=common.node(
      'mixers.rules.' + ('delta' if arg.delta else 'gated_delta')
    ),
    decay=None if arg.delta else decay,
    write=common.node('mixers.writes.Sigmoid'),
    gate=common.node('mixers.gates.Gate', activation=silu),
    norm_epsilon=1e-5,
  )
  config = common.baseline(common.dense(512), smoke=arg.smoke)
  config.model.blocks.block_0.mixer = mixer
  return config
