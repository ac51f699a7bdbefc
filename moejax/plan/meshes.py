"""Meshes and exchanges that a model can be spread with, and those it cannot."""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from moejax import sharding, validate
from moejax.aot.topology import Machine
from moejax.build import find
from moejax.parts import Parts
from moejax.plan.facts import MOE, Facts, product
from moejax.types import Chosen

AXES = ('data', 'fsdp', 'expert', 'context', 'tensor')
EXCHANGES = ('Ring', 'AllToAll', 'RaggedAllToAll')
ALIKE = 'none'


class Choice(NamedTuple):
  """One way to spread a model.

  Attributes:
    sizes: of the mesh.
    exchange: one of EXCHANGES; ALIKE where experts stay on their device.
  """

  sizes: dict[str, int]
  exchange: str

  def shown(self) -> str:
    cut = [f'{name}={size}' for name, size in self.sizes.items() if size > 1]
    return ' '.join(cut) or 'one device'


class Left(NamedTuple):
  """Meshes left out for one reason: how many, and what was said of one."""

  count: int
  example: str


def axes(config: ConfigDict) -> tuple[str, ...]:
  """The axes of the meshes that are searched."""
  return (*AXES, *(name for name in config.mesh if name not in AXES))


def own_sizes(config: ConfigDict, devices: int) -> dict[str, int] | None:
  """The config's mesh on so many devices; None if it does not make them up."""
  try:
    sizes = sharding.mesh_sizes(config.mesh, devices)
  except ValueError:
    return None
  return {name: sizes.get(name, 1) for name in axes(config)}


def search(
  facts: Facts, machine: Machine
) -> tuple[list[Choice], dict[str, Left]]:
  """All choices that a config allows, and why the other meshes are left out.

  Axes other than AXES keep the size that the config gives them.
  """
  config, found = facts.config, []
  parts = Parts(config, range(machine.devices))
  reasons = collections.defaultdict(list)
  for sizes in _sizes(config, machine.devices):
    reason = _refusal(facts, sizes, machine, parts)
    if reason is None:
      found += [Choice(sizes, e) for e in exchanges(facts, sizes, machine)]
    else:
      # Reasons that differ in their numbers alone are one.
      reasons[re.sub(r'\d+', '#', reason)].append(reason)
  left = {key: Left(len(all_), all_[0]) for key, all_ in reasons.items()}
  return found, left


def exchanges(
  facts: Facts, sizes: dict[str, int], machine: Machine
) -> tuple[str, ...]:
  """The exchanges that differ on a mesh, and that the chip has."""
  ranks = product(sizes, facts.axes_of('expert', moe=True))
  if ranks == 1 or not facts.mixtures:
    return (ALIKE,)
  # CPUs alone have no ragged collective.
  has_ragged = machine.chip.platform in ('tpu', 'cuda')
  return EXCHANGES if has_ragged else EXCHANGES[:2]


def spread(config: ConfigDict, choice: Choice) -> ConfigDict:
  """A copy of a config that is spread as `choice` says."""
  config = config.copy_and_resolve_references()
  config.mesh = ConfigDict(choice.sizes)
  if choice.exchange != ALIKE:
    _replace(config.model, choice.exchange)
  return config


def dispatch(node: ConfigDict, exchange: str) -> ConfigDict:
  """The node of an exchange, with those fields of `node` that it has."""
  known = find(f'dispatch.{exchange}').__dataclass_fields__
  fields = {n: v for n, v in node.items() if n in known}
  return ConfigDict({**fields, 'kind': f'dispatch.{exchange}'})


def _replace(node, exchange):
  if isinstance(node, (tuple, list)):
    for value in node:
      _replace(value, exchange)
  if not hasattr(node, 'items'):
    return
  if node.get('kind') == MOE and replaceable(node['dispatch']):
    with node.unlocked():
      node['dispatch'] = dispatch(node['dispatch'], exchange)
  for value in node.values():
    _replace(value, exchange)


def replaceable(node: ConfigDict) -> bool:
  """Whether an exchange takes what this dispatch takes."""
  return Chosen in find(node['kind']).accepts


def _sizes(config, devices) -> Iterator[dict[str, int]]:
  names = axes(config)
  fixed = {n: config.mesh[n] for n in names if n not in AXES}
  left = devices // math.prod(max(1, size) for size in fixed.values())
  for parts in _factors(left, len(AXES)):
    yield dict(zip(AXES, parts, strict=True)) | fixed


def _factors(number: int, count: int) -> Iterator[tuple[int, ...]]:
  """Every way to write a number as a product of `count` ones, in order."""
  if count == 1:
    yield (number,)
    return
  for first in range(1, number + 1):
    if number % first == 0:
      rests = _factors(number // first, count - 1)
      yield from ((first, *rest) for rest in rests)


def _refusal(facts, sizes, machine, parts) -> str | None:
  """Why a mesh cannot be, in one sentence; None if it can."""
  if sizes['expert'] > 1 and not facts.mixtures:
    return 'no layer has experts: the axis expert would be one more of data.'
  here = product(sizes, facts.axes_of('time'))
  if machine.devices_per_host % here:
    return (
      f'{here} devices share a sequence, but a host has '
      f'{machine.devices_per_host}, and reads whole rows.'
    )
  config = facts.config.copy_and_resolve_references()
  config.mesh = ConfigDict(sizes)
  try:
    validate.check_batch(config, parts)
    validate.check_time(config, parts)
    validate.check_pipeline(config, parts)
    validate.check_shardings(config, parts)
  except ValueError as error:
    return str(error)
  return None
