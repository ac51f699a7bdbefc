r"""A memory in every block, 120B parameters, 2.5B of them active.

Claim:    120.3B parameters, of which a token uses 2.5B; the training step fits
          a v5p slice of 32 chips.
Command:  python -m moejax.main --mode=aot --topology=v5p:2x4x4
          --config=configs/pods/ultramem_v2.py
Expect:   exit code 0: memory within a chip's.
Measured: it fits: 63.2 of 95.7 GiB (experiments/2026_11_pod_aot).
Differs:  of the model of this size 2508.18756 tells the parameters and 256
          slots per token; the shape is ours, by the paper's rules: queries of
          half the width over two ranks, pre-values to values as 1 to 3, about
          a sixth of a block's active parameters in its memory, rows of whole
          128 lanes. Slots are cut over the chips, which exchange picks.
          Rows of 2,048 tokens, one for each chip.
"""

from configs import common

PUBLISHED = dict(
  vocab=131_072,
  width=2560,
  layers=32,
  heads=20,
  hidden=3520,
  keys=1896,
  k=256,
  head_dim=1280,
  dims=dict(pre_values=256, values=768),
)
SMOKE = dict(
  vocab=257,
  width=64,
  layers=2,
  heads=4,
  hidden=64,
  keys=16,
  k=4,
  head_dim=32,
  dims=dict(pre_values=8, values=24),
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  sizes = SMOKE if arg.smoke else PUBLISHED
  # Whole tiles of 8 rows on each chip; of the last rows up to 192 are idle.
  slots = -(-(sizes['keys'] ** 2) // 256) * 256
  tables = {
    name: common.table(slots, dim=dim, std=0.067)
    for name, dim in sizes['dims'].items()
  }
  memory = common.node(
    'memory.Tucker',
    keys=sizes['keys'],
    k=sizes['k'],
    head_dim=sizes['head_dim'],
    **tables,
  )
  block = common.block(
    common.attention(sizes['heads']), common.beside(memory, sizes['hidden'])
  )
  config = common.base()
  config.model = common.uniform(
    block, sizes['layers'], vocab=sizes['vocab'], width=sizes['width']
  )
  config.checkpoint.every_steps = 500
  if arg.smoke:
    return common.two_steps(config)
  config = common.pod(config, expert=32, fsdp=1)
  config.train.seq_len = 2048
  rules = dict(config.rules) | {'slots': 'expert'}
  config.rules = tuple(rules.items())
  return config
