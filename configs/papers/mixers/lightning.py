r"""Seven layers of lightning attention for each of softmax attention.

Linear attention whose heads forget at constant rates, more slowly in later
layers; softmax attention with rotary positions on half of each head; two
experts per token.

Claim:    at long contexts far cheaper than softmax attention in all layers,
          at no loss of quality.
Command:  python -m moejax.main --config=configs/papers/mixers/lightning.py
          and the same with :softmax, the baseline.
Expect:   a validation loss within 0.02 of that of the :softmax form.
Measured: not run; the lightning layer equals transformers' of MiniMax to 1e-5
          (tests/parity).
Differs:  8 layers of width 192 on bytes, where the paper has 80 of width 6144
          and 32 experts; pre-norm blocks, where the model this one continues
          has post-norm with scaled residuals (2501.08313); neither its
          reinforcement learning nor CISPO.
"""

from ml_collections import ConfigDict

from configs import common

PAPER = dict(
  title=(
    'MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention'
  ),
  arxiv='2506.13585',
  mechanisms=(
    'mixers.LinearAttention',
    'mixers.rules.lightning',
    'mixers.decays.Lightning',
  ),
  status='recipe',
)

LAYERS = 8


def lightning(layer):
  return common.node(
    'mixers.LinearAttention',
    heads=6,
    rule=common.node('mixers.rules.lightning'),
    decay=common.node(
      'mixers.decays.Lightning', depth=layer / (LAYERS - 1 + 1e-5)
    ),
    gate=common.node('mixers.gates.Gate'),
    conv_size=None,
    qk_norm=False,
    scale=1.0,
    norm_per_head=False,
  )


def get_config(arg=None):
  arg = common.parse_arg(arg, softmax=False, smoke=False)
  ffn = common.moe(16, k=2, hidden=128)
  softmax = common.attention(6, 2, rope_frac=0.5, rope_theta=1e7)
  blocks = {
    f'layer_{i}': common.block(softmax if arg.softmax else lightning(i), ffn)
    for i in range(LAYERS - 1)
  }
  blocks[f'layer_{LAYERS - 1}'] = common.block(softmax, ffn)
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  config.model.blocks = ConfigDict(blocks)
  # No two layers forget at the same rates, so that none is repeated.
  config.model.pattern, config.model.repeats = tuple(blocks), 1
  return config
