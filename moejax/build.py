"""Turns a config tree into objects: `kind` names something under moejax."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from moejax.nearest import nearest

OWNED_BY_FLAX = frozenset({'parent', 'name'})


class ConfigError(ValueError):
  """A config that cannot be built; the message names field, value and fix."""


def build(config: Any, path: str = 'config') -> Any:
  """Builds a config tree.

  A mapping with a `kind` becomes an instance of that class, or that function
  with the fields bound. Mappings without one, tuples and lists are built item
  by item; anything else is itself.

  Args:
    config: a ConfigDict, mapping, sequence or leaf.
    path: where `config` stands in the whole, for error messages.

  Raises:
    ConfigError: for an unknown kind, an unknown field or a missing one.
  """
  if isinstance(config, (list, tuple)):
    return tuple(build(v, f'{path}[{i}]') for i, v in enumerate(config))
  if not _is_mapping(config):
    return config
  fields = {
    k: build(v, f'{path}.{k}') for k, v in config.items() if k != 'kind'
  }
  if 'kind' not in config:
    return fields
  target = find(config['kind'], path)
  _check_fields(config['kind'], target, fields, path)
  if isinstance(target, type):
    try:
      return target(**fields)
    except ValueError as error:
      raise ConfigError(f'{path}: {error}') from error
  return functools.partial(target, **fields) if fields else target


def find(kind: str, path: str = 'config') -> Callable[..., Any]:
  """Looks up `routers.Router` as `moejax.routers.Router`.

  Raises:
    ConfigError: if there is no such class or function.
  """
  names = str(kind).split('.')
  for cut in range(len(names) - 1, 0, -1):
    try:
      found = importlib.import_module('.'.join(['moejax', *names[:cut]]))
    except ModuleNotFoundError as error:
      if not (error.name or '').startswith('moejax'):
        raise
      continue
    for depth, name in enumerate(names[cut:], cut):
      if not hasattr(found, name):
        room = '.'.join(names[:depth])
        raise ConfigError(
          f'{path}.kind={kind!r}: moejax.{room} has no {name!r}; '
          f'{nearest(name, exported(found))}.'
        )
      found = getattr(found, name)
    return found
  raise ConfigError(
    f'{path}.kind={kind!r} names no module under moejax; use the import path '
    "below moejax, such as 'routers.Router'."
  )


def exported(module: Any) -> list[str]:
  """The public classes and functions of a module."""
  return sorted(
    name
    for name, value in vars(module).items()
    if callable(value) and not name.startswith('_')
  )


def known_fields(target: Callable[..., Any]) -> dict[str, bool]:
  """The fields that a config may set, each with whether it is required."""
  if dataclasses.is_dataclass(target):
    return {
      f.name: f.default is dataclasses.MISSING
      and f.default_factory is dataclasses.MISSING
      for f in dataclasses.fields(target)
      if f.init
      and not (issubclass(target, nn.Module) and f.name in OWNED_BY_FLAX)
    }
  parameters = inspect.signature(target).parameters.values()
  return {
    p.name: isinstance(target, type) and p.default is p.empty
    for p in parameters
    if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
  }


def _check_fields(kind, target, fields, path):
  known = known_fields(target)
  for name in fields:
    if name not in known:
      raise ConfigError(
        f'{path}.{name}: {kind} has no field {name!r}; {nearest(name, known)}.'
      )
  missing = [n for n, required in known.items() if required and n not in fields]
  if missing:
    raise ConfigError(
      f'{path}: {kind} needs {", ".join(missing)}; add them to the node.'
    )


def _is_mapping(config: Any) -> bool:
  # A ConfigDict is no Mapping, but walks like one.
  return isinstance(config, Mapping) or (
    hasattr(config, 'items') and hasattr(config, 'to_dict')
  )
