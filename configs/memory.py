r"""A memory of 4,096 slots beside each feed-forward of `dense.py`.

The feed-forward is narrower by what the memory's own matrices take, so that
the active parameters are those of configs/dense.py within 1 %; each layer has
0.2M more in its tables, of which a token reads 16 rows.

Claim:    a lower validation loss than configs/dense.py at equal steps.
Command:  python -m moejax.main --config=configs/memory.py
Expect:   not run.
Measured: not run.
Differs:  no paper; a house baseline.
"""

from configs import common


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  memory = common.node(
    'memory.Tucker',
    keys=64,
    k=16,
    head_dim=96,
    values=common.table(64**2, dim=24, std=0.2),
    pre_values=common.table(64**2, dim=24, std=0.2),
  )
  return common.baseline(common.beside(memory, 408), smoke=arg.smoke)
