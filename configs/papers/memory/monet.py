r"""4,096 experts in each layer, made of 64 halves on each of two sides.

All halves are computed, so that a layer costs what a dense one of width 512
does, and the sparse gates only shape what is learned.

Claim:    the loss of a dense model of equal size, with experts that each stand
          for one thing.
Command:  python -m moejax.main --config=configs/papers/memory/monet.py
          and the same with :horizontal.
Expect:   a validation loss near that of configs/dense.py.
Measured: not run; :published builds 262,144 experts per layer.
Differs:  4 layers of width 192 on bytes, each with a router of its own, where
          the paper's serves four layers; gates are normalised over the halves
          of a token, not by a batch norm.
"""

from configs import common

PAPER = dict(
  title='Monet: Mixture of Monosemantic Experts for Transformers',
  arxiv='2412.04139',
  mechanisms=('memory.Vertical', 'memory.Horizontal'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, horizontal=False, published=False, smoke=False)
  kind = 'memory.Horizontal' if arg.horizontal else 'memory.Vertical'
  halves, heads, k = (512, 8, 32) if arg.published else (64, 4, 8)
  pairs = common.node(kind, halves=halves, hidden=8, k=k, heads=heads)
  config = common.baseline(pairs, smoke=arg.smoke)
  config.losses = {'uniformity': 1e-3, 'ambiguity': 1e-3}
  return config
