"""Which mesh and which exchange: searched by formula for a topology."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from moejax.aot import topology
from moejax.aot.report import GIB

__all__ = ['NothingFits', 'Outcome', 'make', 'text']


class NothingFits(RuntimeError):
  """No mesh of the topology holds the config."""


class Outcome(NamedTuple):
  """A plan.

  Attributes:
    machine: the topology.
    facts: of the config.
    costs: those that fit, best first.
    too_large: the others.
    left: reasons why further meshes cannot be.
    own: the cost of the config's own mesh and exchange; None if it is none
      of those.
  """

  machine: topology.Machine
  facts: tuple
  costs: list
  too_large: list
  left: dict
  own: tuple | None


def make(config: ConfigDict, topology_name: str) -> Outcome:
  """Searches all meshes and exchanges; traces the model, compiles nothing.

  Raises:
    ValueError: the topology is unknown, or the model cannot be built.
  """
  machine = topology.find(topology_name)

  from moejax.plan import cost, facts, meshes

  found = facts.gather(config, meshes.axes(config))
  choices, left = meshes.search(found, machine)
  costs = [cost.predict(found, choice, machine) for choice in choices]
  costs.sort(key=cost.Cost.order)
  return Outcome(
    machine,
    found,
    [c for c in costs if c.fits],
    [c for c in costs if not c.fits],
    left,
    _own(found, machine, costs),
  )


def text(outcome: Outcome, compile_best: int = 0) -> Iterator[str]:
  """The plan as markdown, part by part.

  Args:
    outcome: of `make`.
    compile_best: so many of the best are compiled, minutes each.

  Raises:
    NothingFits: after the table of reasons.
  """
  from moejax.plan import table

  machine = outcome.machine
  yield f'# Plan for {machine.name}, {machine.devices} devices\n'
  if outcome.costs:
    yield table.ranked(outcome.costs, outcome.own) + '\n'
  if outcome.own is None:
    yield "The config's own mesh and exchange are none of these.\n"
  yield table.left_out(outcome.left, outcome.too_large) + '\n'
  yield table.notes(machine)
  if not outcome.costs:
    raise NothingFits(_why(outcome))
  if compile_best:
    yield '\n' + table.compiled(list(compiled(outcome, compile_best)))


def compiled(outcome: Outcome, count: int) -> Iterator[tuple]:
  """(prediction, report or refusal) of the best `count`, compiled."""
  from moejax import aot
  from moejax.plan import cost, meshes

  for best in outcome.costs[:count]:
    config = meshes.spread(outcome.facts.config, best.choice)
    guess = cost.predict(
      outcome.facts, best.choice, outcome.machine, as_text=True
    )
    try:
      yield guess, aot.check(config, outcome.machine.name)
    except (ValueError, RuntimeError) as error:
      yield guess, ' '.join(str(error).split())


def _own(facts, machine, costs):
  from moejax.plan import meshes

  sizes = meshes.own_sizes(facts.config, machine.devices)
  kinds = {mixture.dispatch.kind for mixture in facts.mixtures}
  for cost in costs:
    kind = cost.choice.exchange
    same = kind == meshes.ALIKE or f'dispatch.{kind}' in kinds
    if same and cost.choice.sizes == sizes:
      return cost
  return None


def _why(outcome):
  train = outcome.facts.config.train
  name, devices = outcome.machine.name, outcome.machine.devices
  if not outcome.too_large:
    return (
      f'no mesh of the {devices} devices of {name} divides '
      f'config.train.batch_size={train.batch_size}, seq_len={train.seq_len} '
      'and the parameters; change the batch, or the topology.'
    )
  best = min(outcome.too_large, key=lambda cost: cost.total)
  return (
    f'nothing fits {name}: the least is {best.total / GIB:.2f} of '
    f'{best.limit / GIB:.2f} GiB a device ({best.choice.shown()}, exchange '
    f'{best.choice.exchange}); take a larger topology, a smaller batch, or '
    'config.model.remat=full.'
  )
