"""Bytes that one device holds at the peak of a step, by what they are."""

from __future__ import annotations

from moejax.dispatch.rounds import buffer_rows
from moejax.plan import stages
from moejax.plan.facts import Facts, Leaf, Mixture, product
from moejax.plan.meshes import ALIKE, Choice

PROGRAM = 16 * 2**20
_LOGITS = 4 + 4 + 2  # f32 logits, their exponents, their gradient in bf16
_F32 = 4


def held(facts: Facts, choice: Choice) -> dict[str, float]:
  """Bytes of one device, by what holds them.

  parameters and moments are f32 and cut as the rules say, as are gradients.
  kept is what the scan over layers keeps for the backward pass; a layer at
  work has its activations, its weights whole, and the buffers of its exchange;
  the loss has a chunk of logits.
  """
  sizes = choice.sizes
  parameters = sum(leaf.bytes(sizes) for leaf in facts.params)
  n = tokens(facts, sizes)
  pipe = stages.of(facts, sizes)
  return {
    'parameters': parameters,
    'moments': sum(leaf.bytes(sizes) for leaf in facts.moments),
    'gradients': parameters * (1 + (facts.config.train.accumulate > 1)),
    'kept': facts.kept * n * pipe.work + _rows_of_stages(facts, sizes),
    'layer': facts.period * n * pipe.share + _layer_weights(facts, sizes),
    'exchange': exchange_bytes(facts, choice),
    'logits': _logits(facts, sizes),
    'program': PROGRAM,
  }


def tokens(facts: Facts, sizes: dict[str, int]) -> float:
  """Tokens of one device and micro-batch."""
  devices = product(sizes, facts.token_axes())
  return facts.tokens / devices / facts.config.train.accumulate


def stream_bytes(facts: Facts, sizes: dict[str, int]) -> float:
  """Of the tokens of a stage, as many as those of all that share a layer."""
  devices = stages.of(facts, sizes).devices
  width = facts.config.model.width * facts.itemsize
  return tokens(facts, sizes) * devices * width


def _rows_of_stages(facts, sizes):
  """What a stage holds of all rows: inputs, outputs and their gradients."""
  if stages.of(facts, sizes).devices == 1:
    return 0.0
  return 4 * stream_bytes(facts, sizes)


def exchange_bytes(facts: Facts, choice: Choice) -> float:
  """Rows of an exchange beyond a device's own choices, at the worst layer.

  Each is there with its input, output and two hidden layers, and again as the
  gradient of these.
  """
  width, most = facts.config.model.width, 0.0
  for mixture in facts.mixtures:
    more = rows(facts, choice, mixture)
    if choice.exchange == 'Ring':
      more -= own_choices(facts, choice, mixture)
    numbers = 2 * (2 * width + 2 * mixture.hidden)
    most = max(most, more * numbers * facts.itemsize)
  return most


def own_choices(facts: Facts, choice: Choice, mixture: Mixture) -> float:
  """Choices of one device's tokens, those of one exchange."""
  group = facts.token_axes() | set(facts.axes_of('expert', moe=True))
  tokens_ = facts.tokens / product(choice.sizes, group)
  tokens_ *= stages.of(facts, choice.sizes).share
  parts = mixture.dispatch.get('stages', 1) * facts.config.train.accumulate
  return tokens_ * mixture.k / parts


def rows(facts: Facts, choice: Choice, mixture: Mixture) -> float:
  """Rows of the buffer that a device's experts work on; 0 without any."""
  own = own_choices(facts, choice, mixture)
  if choice.exchange == 'Ring':
    return own * product(choice.sizes, facts.axes_of('expert', moe=True))
  if choice.exchange == ALIKE:
    return 0.0
  return buffer_rows(mixture.dispatch.get('room', 1.5), own)


def whole_bytes(facts: Facts, sizes: dict[str, int]) -> float:
  """Weights that one device multiplies with in a pass, once gathered."""
  return sum(whole(facts, leaf, sizes) for leaf in facts.params)


def whole(facts: Facts, leaf: Leaf, sizes: dict[str, int]) -> float:
  """Bytes of one parameter as a device multiplies with it."""
  left = leaf.cut() - gathered_axes(facts, leaf)
  return leaf.size * facts.itemsize / product(sizes, left)


def gathered_axes(facts: Facts, leaf: Leaf) -> set[str]:
  """Mesh axes over which a parameter comes together before it is used.

  Where devices of an axis have other tokens, each needs the parameter whole,
  but for experts, to which tokens travel.
  """
  own = leaf.cut() - stages.cut(leaf)
  if 'expert' not in leaf.axes:
    return own & facts.token_axes()
  # Exchanges and kernels take whole matrices.
  return own - set(facts.axes_of('expert', moe=True))


def _layer_weights(facts, sizes):
  """Gathered weights of one period, and those of the next on their way."""
  repeats = facts.config.model.get('repeats', 1)
  found = facts._replace(
    params=tuple(
      leaf
      for leaf in facts.params
      if leaf.path.startswith('layers/')
      and product(sizes, gathered_axes(facts, leaf)) > 1
    )
  )
  return 2 * whole_bytes(found, sizes) / repeats


def _logits(facts, sizes):
  loss, train = facts.config.loss, facts.config.train
  # A chunk is of one device's tokens.
  devices = product(sizes, facts.axes_of('batch'))
  rows = train.batch_size / train.accumulate / devices
  length = train.seq_len / product(sizes, facts.axes_of('time'))
  own = rows * min(length, max(1, loss.get('chunk_tokens', 4096) // rows))
  vocab = facts.config.model.vocab
  cut = product(sizes, facts.axes_of('vocab'))
  # The gradient of the head is f32 and whole while the chunks add to it.
  head = vocab / cut * facts.config.model.width * _F32
  return own * vocab / cut * _LOGITS + head
