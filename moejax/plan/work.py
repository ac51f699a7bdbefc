"""FLOPs of a device, and what it moves to and from its main memory."""

from __future__ import annotations

from moejax.accounting import TRAIN_OVER_FORWARD
from moejax.plan import memory, stages
from moejax.plan.facts import Facts, product
from moejax.plan.meshes import ALIKE, Choice

ONCE = (ALIKE, 'Ring')  # exchanges without further rounds

# Times that a compiled step moves as much as its f32 parameters take, for
# gradients, their sums, conversions, clipping, moments and the guard: as
# programs compiled for v5e do, at 4 and at 60 million parameters.
_PASSES_OVER_STATE = 38


def flops(facts: Facts, choice: Choice, rounds: int = 0) -> float:
  """FLOPs of matrix products of one device and step, recomputed ones too.

  With `rounds` those of experts are of so many full buffers, which is how the
  text of a program counts.
  """
  total = 0.0
  for path, forward in facts.flops.items():
    own = passes(facts, path) * forward * facts.tokens
    own /= _devices(facts, path, choice.sizes)
    if path.startswith('layers/'):
      own *= stages.of(facts, choice.sizes).work
    if rounds and any('expert' in p.axes for p in facts.under(path)):
      own *= _full(facts, choice, rounds)
    total += own
  return total


def _full(facts, choice, rounds):
  """Rows that experts work on, of those that there are."""
  mixture = facts.mixtures[0]
  own = memory.own_choices(facts, choice, mixture)
  share = memory.rows(facts, choice, mixture) / own
  return (share or 1.0) * (1 if choice.exchange in ONCE else rounds)


def passes(facts: Facts, path: str) -> int:
  """How often the forward work of a part is done in a training step."""
  again = facts.config.model.get('remat') == 'full'
  # The model recomputes what it scans over alone.
  return TRAIN_OVER_FORWARD + (again and path.startswith('layers/'))


def _devices(facts, path, sizes):
  """Devices that share the work of the parameters under a path."""
  tokens = facts.token_axes()
  if path == 'head':
    return product(sizes, tokens | set(facts.axes_of('vocab')))
  own = facts.under(path)
  if any('expert' in p.axes for p in own):
    group = tokens | set(facts.axes_of('expert', moe=True))
    if product(sizes, group) > 1:
      return product(sizes, group)  # each works with whole matrices
  inner = set()
  for p in own:
    pairs = zip(p.axes, p.over, strict=True)
    inner.update(a for name, over in pairs if name != 'embed' for a in over)
  return product(sizes, tokens | inner)


def memory_bytes(facts: Facts, choice: Choice) -> float:
  """Bytes that one device reads and writes in a step.

  The state, the weights of each pass, and what layers keep or work with:
  written once and read once, and once more where it is recomputed.
  """
  micro = facts.config.train.accumulate
  pipe = stages.of(facts, choice.sizes)
  state = sum(leaf.bytes(choice.sizes) for leaf in facts.params)
  weights = memory.whole_bytes(facts, choice.sizes) * micro
  layers = facts.period * memory.tokens(facts, choice.sizes) * micro
  model = facts.config.model
  times = 2 + (model.get('remat') == 'full')
  return (
    _PASSES_OVER_STATE * state
    + TRAIN_OVER_FORWARD * weights * pipe.turns
    + times * layers * pipe.work * model.get('repeats', 1)
  )
