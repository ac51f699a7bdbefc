"""Bytes that one device sends in a step, by formula.

By the algorithms on a ring that need the least: of n devices, all-gather and
reduce-scatter of an array of b bytes (n - 1) / n b, all-reduce twice that.
"""

from __future__ import annotations

import collections
import dataclasses

from moejax.build import build
from moejax.dispatch import traffic
from moejax.plan import memory, stages
from moejax.plan.facts import Facts, product
from moejax.plan.meshes import ALIKE, Choice, dispatch

# Kinds of a plan, and those of a compiled program that they stand for.
KINDS = {
  'gather': ('all-gather', 'collective-broadcast'),
  'reduce': ('all-reduce', 'reduce-scatter'),
  'exchange': ('all-to-all', 'ragged-all-to-all', 'collective-permute'),
}
# Rows that change devices at each layer of experts where time is cut: those
# flatten rows and tokens, which the compiler cuts otherwise. So do programs
# compiled for v5e, with recomputation.
_FLATTENED = 15
_GATHERS = 2  # of a parameter: in the forward pass and in the backward pass


def by_kind(sent: dict[str, float]) -> dict[str, float]:
  """Bytes by kind of a plan, of those by kind of collective."""
  return {
    kind: sum(sent.get(name, 0.0) for name in names)
    for kind, names in KINDS.items()
  }


def sent(facts: Facts, choice: Choice, rounds: int = 1) -> dict[str, float]:
  """Bytes by KINDS; `rounds` of an exchange."""
  total = collections.Counter()
  micro = facts.config.train.accumulate
  for part in (_parameters, _embedding, _tensor, _context, _stages):
    total.update(part(facts, choice.sizes))
  exchanged = collections.Counter()
  for mixture in facts.mixtures:
    exchanged.update(_exchange(facts, choice, mixture, rounds))
  total.update(by_kind(exchanged))
  return {kind: micro * total[kind] for kind in KINDS}


def _parameters(facts, sizes):
  """Gathers of parameters that are cut, sums of their gradients."""
  turns = stages.of(facts, sizes).turns
  gathers = reductions = 0.0
  for leaf in facts.params:
    whole = memory.whole(facts, leaf, sizes)
    # A pipeline gathers and sums those of layers for each micro-batch.
    whole *= turns if 'layers' in leaf.axes else 1
    cut = product(sizes, memory.gathered_axes(facts, leaf))
    gathers += _GATHERS * _share(cut) * whole
    summed = facts.token_axes() - stages.cut(leaf)
    if 'expert' in leaf.axes:
      summed = summed - set(facts.axes_of('expert', moe=True))
    reductions += 2 * _share(product(sizes, summed)) * whole
  return {'gather': gathers, 'reduce': reductions}


def _embedding(facts, sizes):
  """Rows of a table that is cut along its width change places, both ways.

  The gradient of the head is summed beside that of the embedding.
  """
  model = facts.config.model
  row = memory.tokens(facts, sizes) * model.width * facts.itemsize
  cut = product(sizes, set(facts.axes_of('embed')) & facts.token_axes())
  head = model.vocab * model.width * facts.itemsize
  head /= product(sizes, facts.axes_of('vocab'))
  summed = 2 * _share(product(sizes, facts.token_axes())) * head
  # Untied, the head is a parameter, and counted in the activations' dtype.
  summed *= 1.0 if model.get('tied', True) else 0.5
  return {'exchange': 2 * _share(cut) * row, 'reduce': summed}


def _tensor(facts, sizes):
  """Sums over devices that share heads, hidden layers or the vocabulary.

  A mixer's output is summed forward, once more where it is recomputed, and its
  inputs' gradient backward, for the two sides of its projections; a dense
  feed-forward's once each; embedding and head once each.
  """
  width = facts.config.model.width * facts.itemsize
  row = memory.tokens(facts, sizes) * width
  model = facts.config.model
  layers = model.get('repeats', 1) * stages.of(facts, sizes).work
  again = model.get('remat') is not None
  total = 0.0
  for path in facts.flops:
    own = facts.under(path)
    count = layers if path.startswith('layers/') else 1
    if any('expert' in p.axes for p in own):
      total += count * (2 + again) * _split_rows(facts, sizes, own) * row
      continue
    heads = _cut_by(facts, own, 'heads')
    mlp = _cut_by(facts, own, 'mlp') if not heads else set()
    total += count * (3 + again) * 2 * _share(product(sizes, heads)) * row
    total += count * 2 * 2 * _share(product(sizes, mlp)) * row
  vocab = product(sizes, facts.axes_of('vocab'))
  return {'reduce': total + 2 * 2 * _share(vocab) * row}


def _split_rows(facts, sizes, experts):
  """Rows per token summed in a pass over experts that the compiler splits.

  It does where no device has tokens of its own.
  """
  own = set(facts.axes_of('expert', moe=True))
  if product(sizes, own | facts.token_axes()) > 1:
    return 0.0
  cut = product(sizes, _cut_by(facts, experts, 'mlp'))
  return 2 * _share(cut) * max(m.k for m in facts.mixtures)


def _context(facts, sizes):
  """Keys and values of a sequence, forward, again and their gradients.

  And rows on their way to the order in which experts see tokens, and back.
  """
  n = product(sizes, facts.axes_of('time'))
  heads = product(sizes, facts.axes_of('heads'))
  whole = facts.cache * memory.tokens(facts, sizes) * n / heads
  whole *= stages.of(facts, sizes).work
  again = facts.config.model.get('remat') is not None
  width = facts.config.model.width * facts.itemsize
  layers = sum(m.layers for m in facts.mixtures)
  row = memory.tokens(facts, sizes) * width
  row *= stages.of(facts, sizes).work
  return {
    'gather': (1 + again) * _share(n) * whole,
    'reduce': 2 * _share(n) * whole,
    'exchange': layers * _FLATTENED * _share(n) * row,
  }


def _stages(facts, sizes):
  """Rows from stage to stage, into the first and out of the last."""
  pipe = stages.of(facts, sizes)
  if pipe.devices == 1:
    return {}
  stream = memory.stream_bytes(facts, sizes)
  inout = 2 * _share(pipe.devices) * stream  # and their gradient
  return {
    'exchange': pipe.schedule.permute_bytes(stream),
    'gather': inout,
    'reduce': inout,
  }


def _exchange(facts, choice, mixture, rounds):
  """What an exchange of all its layers sends, by kind of collective."""
  if choice.exchange == ALIKE:
    return {}
  own = set(facts.axes_of('expert', moe=True))
  parts = product(choice.sizes, facts.token_axes() | own)
  pipe = stages.of(facts, choice.sizes)
  tokens = facts.tokens // facts.config.train.accumulate // parts
  layer = traffic.Layer(
    tokens=int(tokens * pipe.share),
    k=mixture.k,
    width=facts.config.model.width,
    num_experts=mixture.num_experts,
    ranks=product(choice.sizes, own),
    itemsize=facts.itemsize,
  )
  made = build(dispatch(mixture.dispatch, choice.exchange), 'dispatch')
  more = {} if choice.exchange == 'Ring' else {'num_rounds': rounds}
  found = collections.Counter(made.collective_bytes(layer, **more))
  if facts.config.model.get('remat') is not None:
    found.update(_there(made, layer))
  times = mixture.layers / pipe.devices * pipe.turns
  return {kind: times * size for kind, size in found.items()}


def _there(made, layer):
  """What recomputation sends again: the way to the experts."""
  forward = made.collective_bytes(dataclasses.replace(layer, backward=False))
  forward.pop('reduce-scatter', None)
  there = {'all-to-all': 0.5, 'ragged-all-to-all': 0.5}
  return {kind: there.get(kind, 1) * n for kind, n in forward.items()}


def _cut_by(facts, leaves, name):
  """Mesh axes, other than those of tokens, that cut an axis of parameters."""
  return {
    axis
    for leaf in leaves
    for axes, over in zip(leaf.axes, leaf.over, strict=True)
    if axes == name
    for axis in over
  } - facts.token_axes()


def _share(n: int) -> float:
  return (n - 1) / n
