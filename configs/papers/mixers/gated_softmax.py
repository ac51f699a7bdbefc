r"""A sigmoid gate between softmax attention and its output projection.

Every output of every head is multiplied by a sigmoid of the layer's input.

Claim:    a lower loss, and less attention to the first token: a head that has
          nothing to say can be closed and needs no sink.
Command:  python -m moejax.main --config=configs/papers/mixers/gated_softmax.py
          and the same with :headwise, one gate a head, and :plain, none.
Expect:   a lower validation loss than the :plain form, and a smaller
          analyze.attention.first_token_mass.
Measured: not run.
Differs:  4 layers of width 192 on bytes; the gate adds 37k parameters a layer
          that the :plain form does not have (1.2k with :headwise), where the
          paper narrows the feed-forward; sinks form late in training and in
          long documents, so that 500 steps of 256 bytes may show none.
"""

from configs import common

PAPER = dict(
  title='Gated Attention for Large Language Models: Non-linearity, Sparsity, '
  'and Attention-Sink-Free',
  arxiv='2505.06708',
  mechanisms=('mixers.Attention', 'mixers.gates.Gate'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, headwise=False, plain=False, smoke=False)
  config = common.baseline(common.dense(512), smoke=arg.smoke)
  if not arg.plain:
    config.model.blocks.block_0.mixer.gate = common.node(
      'mixers.gates.Gate', headwise=arg.headwise
    )
  return config
