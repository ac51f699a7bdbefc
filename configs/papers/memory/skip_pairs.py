r"""Two memories of a fourfold table, each added one block after it is read.

A block reads the memory beside its feed-forward, and a later one adds the
result, so that looking up can take as long as what lies between. A value
serves four slots, each through a matrix of its block of slots.

Claim:    as good as a mixture of experts with as many parameters and as much
          compute, and up to 6 times faster in decoding.
Command:  python -m moejax.main --config=configs/papers/memory/skip_pairs.py
Expect:   a validation loss below configs/dense.py's, above that of
          configs/papers/memory/ring.py.
Measured: at width 64 level with a mixture and with ring.py's, on text and when
          asked for what was told in rounds, three seeds:
          experiments/2026_11_memory_trends.
Differs:  4 layers of width 192 on bytes, pairs 0:1 and 2:3 (:published has 20
          layers and the pairs 2:5, 6:9, 10:13 and 14:17 of the released
          code); other differences are listed at `memory.Expanded`. Tables start
          with the deviation of their width^-1/2. The penalty on small singular
          values of the core, which the released code leaves out, is left out.
"""

from configs import common

PAPER = dict(
  title='Ultra-Sparse Memory Network',
  arxiv='2411.12364',
  mechanisms=('memory.Expanded', 'blocks.Skip', 'optim.Group'),
  status='recipe',
)


def memory(keys, k, head_dim, dim, **fields):
  """A memory of keys^2 slots in four blocks, on a quarter of the rows."""
  return common.node(
    'memory.Expanded',
    keys=keys,
    k=k,
    head_dim=head_dim,
    values=common.table(keys**2 // 4, dim=dim),
    **fields,
  )


def pair(config, mixer, ffn, memory, *, between=0, repeats, around=0):
  """Layers of pairs: a block that reads, some between, and one that joins.

  Args:
    config: to be given the blocks.
    mixer: of all blocks.
    ffn: likewise.
    memory: what the first block of a pair reads.
    between: blocks between those of a pair.
    repeats: number of pairs.
    around: blocks before the pairs, and after them.
  """
  reads = common.node('blocks.Skip', mixer=mixer, ffn=ffn, memory=memory)
  joins = common.node('blocks.Skip', mixer=mixer, ffn=ffn, joins=True)
  blocks = {'reads': reads, 'joins': joins}
  if between or around:
    blocks['plain'] = common.block(mixer, ffn)
  model = config.model
  model.blocks = blocks
  model.pattern = ('reads', *('plain',) * between, 'joins')
  model.repeats = repeats
  model.prefix = model.suffix = ('plain',) * around
  return config


def get_config(arg=None):
  arg = common.parse_arg(arg, published=False, smoke=False)
  if arg.published:
    config = common.base()
    ffn = common.dense(2752)
    config.model = common.uniform(None, 1, vocab=50304, width=768)
    node = memory(1616, 80, 384, 384, heads=2)
    pair(
      config, common.attention(12), ffn, node, between=2, repeats=4, around=2
    )
  else:
    config = common.baseline(common.dense(436), smoke=arg.smoke)
    node = memory(192, 16, 64, 48)
    pair(config, common.attention(6, 2), common.dense(436), node, repeats=2)
  # Ten times the learning rate for the tables, falling to the others'.
  settings = {'lr_scale': 10.0, 'lr_scale_end': 1.0}
  config.optim.groups = (('values/rows$', settings),)
  return config
