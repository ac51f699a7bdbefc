"""Finds the members of every slot, so that a new one is tested unasked.

A test that takes an argument named like a slot runs once for each member.
"""

import functools
import inspect

import flax.linen as nn
import jax
import pytest

from moejax import (
  balance,
  blocks,
  build,
  dispatch,
  experts,
  infer,
  losses,
  memory,
  mixers,
  moe,
  routers,
)
from moejax.types import Chosen, Pairs

NUM_EXPERTS = 8


def router():
  """A router for wrappers."""
  return routers.Router(
    score=routers.scores.Linear(num_experts=NUM_EXPERTS),
    k=3,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )


def required():
  """What members may ask for; a new field that is required goes here."""
  return {
    'num_experts': NUM_EXPERTS,
    'hidden': 12,
    'k': 3,
    'num_groups': 4,
    'kept_groups': 2,
    'heads': 4,
    'kv_heads': 2,
    'latent_dim': 8,
    'nope_dim': 6,
    'rope_dim': 4,
    'value_dim': 5,
    'head_dim': 4,
    'block_tokens': 4,  # all three blocks of the suite's rows are picked
    'shared': 4,
    'router': router(),
    'capacity_factor': float(NUM_EXPERTS),  # room for every choice
    'exact': dispatch.Sort(),
    'rate': 1.0,
    'score': routers.scores.Linear(num_experts=NUM_EXPERTS),
    'select': routers.select.top_k,
    'weigh': routers.weigh.softmax,
    'inner': router(),
    'rule': mixers.rules.kda,
    'decay': mixers.decays.Softplus(rank=3),
    'write': mixers.writes.Sigmoid(),
    'mixer': mixers.Attention(heads=4, kv_heads=2),
    'ffn': moe.Dense(experts.Glu(hidden=12)),
    'keys': 8,
    'halves': 6,
    'values': memory.tables.Table(slots=64),
    'pre_values': memory.tables.Table(slots=64),
  }


def exported(module):
  """The members of a slot: its `__all__`, or what the module defines."""
  names = getattr(module, '__all__', None) or [
    name
    for name in build.exported(module)
    if getattr(module, name).__module__ == module.__name__
  ]
  found = [getattr(module, name) for name in names]
  return [member for member in found if callable(member)]


def make(member):
  """The member with every field that it requires."""
  known = required()
  if isinstance(member, type):
    names = [n for n, needed in build.known_fields(member).items() if needed]
    asked = ('decay', 'ffn', 'num_experts', 'write')
    names += [n for n in asked if n in build.known_fields(member)]
    return member(**{name: known[name] for name in set(names)})
  names = [
    p.name
    for p in inspect.signature(member).parameters.values()
    if p.kind is p.KEYWORD_ONLY and p.default is p.empty
  ]
  fields = {name: known[name] for name in names}
  return functools.partial(member, **fields) if fields else member


def _is_term(member):
  first = next(iter(inspect.signature(member).parameters))
  return isinstance(member, type) or first == 'assignment'


SLOTS = {
  'affinity': exported(routers.affinities),
  'balance_term': [m for m in exported(balance) if _is_term(m)],
  'block': exported(blocks),
  'chosen_dispatch': [m for m in exported(dispatch) if Chosen in m.accepts],
  'expert': exported(experts),
  'gate': exported(mixers.gates),
  'loss': exported(losses),
  'memory': exported(memory),
  'mixer': exported(mixers),
  'pairs_dispatch': [m for m in exported(dispatch) if Pairs in m.accepts],
  'router': [m for m in exported(routers) if isinstance(m, type)],
  'sampler': exported(infer.sampler),
  'score': exported(routers.scores),
  'select': exported(routers.select),
  'weigh': exported(routers.weigh),
}


def pytest_generate_tests(metafunc):
  for slot, members in SLOTS.items():
    if slot in metafunc.fixturenames:
      assert members, f'no member of {slot} was found'
      metafunc.parametrize(
        slot, [pytest.param(make(m), id=m.__name__) for m in members]
      )


class Calls(nn.Module):
  """Calls a term that may be a function or a module."""

  term: object

  @nn.compact
  def __call__(self, *args):
    return self.term(*args)


@pytest.fixture
def num_experts():
  return NUM_EXPERTS


@pytest.fixture
def call():
  """`(term, *args) -> value` of a balance term, freshly initialised."""

  def apply(term, *args):
    variables = Calls(term).init(jax.random.key(0), *args)
    return Calls(term).apply(variables, *args, mutable=['balance'])[0]

  return apply
