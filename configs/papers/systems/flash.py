r"""Dispatch, experts and combine in stages that overlap.

Each device's tokens are cut into four parts with an exchange each, none of
which waits for another: while one part is computed, the next can travel to its
experts and the last one back.

Claim:    overlap hides the exchange behind the products.
Command:  python -m moejax.main --config=configs/papers/systems/flash.py
          --config.mesh.expert=8, and the same with :bulk, the baseline.
Expect:   the losses of the :bulk form step by step, within rounding; a shorter
          step where transfers run beside products, as on TPU and GPU; on CPU,
          where they do not, a longer one.
Measured: not run.
Differs:  stages of collectives that the compiler overlaps, where the paper has
          one persistent kernel and one-sided transfers of tiles; trained, and
          nothing is dropped; 4 layers of width 192 on bytes.
"""

from configs import common

PAPER = dict(
  title='FlashMoE: Fast Distributed MoE in a Single Kernel',
  arxiv='2506.04667',
  mechanisms=('dispatch.AllToAll', 'routers.select.top_k', 'balance.load'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, bulk=False, smoke=False)
  stages = 1 if arg.bulk else 4
  ffn = common.moe(
    16,
    k=2,
    hidden=256,
    dispatch=common.node('dispatch.AllToAll', stages=stages),
  )
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  return config
