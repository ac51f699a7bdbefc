r"""Whole tiles of tokens for every expert, in training.

Every feed-forward is 64 experts of a quarter of the dense width, four of them
for each token. A step has 4,096 tokens, 256 for an expert on average, which
rounding makes a multiple of 128. The backward pass keeps the tokens and the
pre-activations, no row of the model's width for each pair.

Claim:    rounding spares the grouped products their padding at about the loss
          of plain top-k.
Command:  python -m moejax.main --config=configs/papers/systems/sonic.py
          and the same with :top_k, the baseline.
Expect:   the validation loss of the :top_k form, within its standard error
          over seeds; moe/rounded_frac says how many pairs were moved.
Measured: not run.
Differs:  4 layers of width 192 on bytes; the total is kept at 4 pairs a token
          by largest remainder, where the paper rounds each expert alone.
"""

from configs import common

PAPER = dict(
  title='SonicMoE: Accelerating MoE with IO and Tile-aware Optimizations',
  arxiv='2512.14080',
  mechanisms=(
    'routers.TokenRounding',
    'dispatch.Sort',
    'routers.weigh.softmax',
    'balance.load',
  ),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, top_k=False, smoke=False)
  load = {'load': common.node('balance.load')}
  ffn = common.moe(64, k=4, hidden=128, balance=load)
  if not arg.top_k:
    ffn.router = common.node(
      'routers.TokenRounding',
      inner=ffn.router,
      # A smoke run has too few tokens for a real tile.
      tile_rows=4 if arg.smoke else 128,
    )
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01}
  return config
