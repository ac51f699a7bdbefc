r"""Mamba-2 in every layer: a state space whose heads share keys and queries.

Claim:    a loss as low as that of attention, with a state that does not grow.
Command:  python -m moejax.main --config=configs/papers/mixers/mamba.py
          and configs/dense.py, the baseline.
Expect:   a validation loss within 0.02 of that of configs/dense.py.
Measured: not run; the mixer equals transformers' to 1e-5 (tests/parity).
Differs:  4 layers of width 192 on bytes, with a state of 64 in place of 128;
          a feed-forward follows each mixer, where the paper has mixers alone;
          the projections start with variance 1 / fan-in.
"""

from configs import common

PAPER = dict(
  title=(
    'Transformers are SSMs: Generalized Models and Efficient Algorithms '
    'Through Structured State Space Duality'
  ),
  arxiv='2405.21060',
  mechanisms=('mixers.StateSpace', 'mixers.rules.ssd'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  config = common.baseline(common.dense(512), smoke=arg.smoke)
  config.model.blocks.block_0.mixer = common.node(
    'mixers.StateSpace', heads=6, state_size=64
  )
  return config
