"""Configs as exact text: to JSON and back, compared, and overridden.

A config tree holds dicts, tuples, strings, ints, floats, bools and None. JSON
has no tuple, so every sequence is a tuple once it is read back: a list in a
recipe becomes a tuple, and two configs that differ only in that are equal.
"""

import difflib
import json
import math
import re

import ml_collections

_ABSENT = object()
_STEP = re.compile(r'\[(\d+)\]|([^.\[\]]+)')
_PATH = re.compile(r'[^.\[\]]+(\[\d+\])*(\.[^.\[\]]+(\[\d+\])*)*')


def plain(config, where='config'):
  """The tree as plain dicts and tuples, with Python numbers at the leaves.

  Raises:
    ValueError: a leaf that JSON cannot hold exactly (nan, a set, a function).
  """
  if isinstance(config, (dict, ml_collections.ConfigDict)):
    for key in config:
      if not isinstance(key, str):
        raise ValueError(f'{where} has the key {key!r}; keys must be strings.')
    return {k: plain(v, f'{where}.{k}') for k, v in config.items()}
  if hasattr(config, 'tolist'):
    config = config.tolist()
  if isinstance(config, (tuple, list)):
    return tuple(plain(v, f'{where}[{i}]') for i, v in enumerate(config))
  if isinstance(config, float) and not math.isfinite(config):
    raise ValueError(
      f'{where} is {config}, which is not a finite number; give a number, or '
      'None where the field can be off.'
    )
  if config is None or isinstance(config, (bool, int, float, str)):
    return config
  raise ValueError(
    f'{where} is a {type(config).__name__}; a config holds numbers, strings, '
    'bools, None, and tuples or dicts of them (name code by its import path).'
  )


def to_config(tree):
  """A ConfigDict of a plain tree, also for the dicts inside its tuples."""
  if isinstance(tree, dict):
    return ml_collections.ConfigDict({k: to_config(v) for k, v in tree.items()})
  if isinstance(tree, tuple):
    return tuple(to_config(v) for v in tree)
  return tree


def to_json(config):
  """The config as JSON text with sorted keys; equal configs, equal text.

  Raises:
    ValueError: a leaf that JSON cannot hold exactly, see `plain`.
  """
  tree = plain(config)
  return json.dumps(tree, indent=2, sort_keys=True, allow_nan=False) + '\n'


def from_json(text):
  """The ConfigDict that `to_json` wrote; every JSON list becomes a tuple.

  Raises:
    ValueError: `text` is not JSON, or not that of a config.
  """
  tree = json.loads(text)
  if not isinstance(tree, dict):
    raise ValueError(
      f'the text holds a {type(tree).__name__}; a config is a JSON object.'
    )
  return to_config(plain(tree))


def difference(old, new):
  """Lines 'path: old -> new' for every leaf in which two configs differ.

  Types count (1 is not 1.0, nor True); lists and tuples are the same.
  """
  return list(_difference(plain(old), plain(new), ''))


def _difference(old, new, path):
  if isinstance(old, dict) and isinstance(new, dict):
    for key in sorted({**old, **new}):
      inner = f'{path}.{key}' if path else key
      yield from _difference(
        old.get(key, _ABSENT), new.get(key, _ABSENT), inner
      )
  elif isinstance(old, tuple) and isinstance(new, tuple):
    for i in range(max(len(old), len(new))):
      pair = [tree[i] if i < len(tree) else _ABSENT for tree in (old, new)]
      yield from _difference(*pair, f'{path}[{i}]')
  elif type(old) is not type(new) or old != new:
    yield f'{path}: {_shown(old)} -> {_shown(new)}'


def _shown(value):
  return '(absent)' if value is _ABSENT else repr(value)


def canonical_path(path):
  """`path` without a leading 'config.'.

  'config.name' stays: alone, 'name' is the name of a sweep's cell.
  """
  if not isinstance(path, str) or not _PATH.fullmatch(path):
    raise ValueError(
      f'path={path!r} is not a config path; write one like '
      "'model.width' or 'model.pattern[0].mixer'."
    )
  short = path.removeprefix('config.')
  return path if short == 'name' else short


def override(config, overrides):
  """A copy of `config` in which each dotted path holds its new value.

  A dict as value replaces the whole node; where one path is inside another,
  the outer is replaced first. None may replace anything and be replaced by
  anything (off is None), an int may stand for a float, and a list for a tuple.
  The key 'name' names a sweep's cell and is skipped.

  Raises:
    ValueError: an unknown path, or a value of another type than today's.
  """
  tree = plain(config)
  named = {
    canonical_path(path): plain(value, path)
    for path, value in overrides.items()
    if path != 'name'
  }
  for path in sorted(named, key=lambda path: len(_steps(path))):
    tree = _replaced(tree, path, _steps(path), named[path])
  return to_config(tree)


def lookup(config, path):
  """The plain value of `config` at a dotted path.

  Raises:
    ValueError: an unknown path, with the nearest known one.
  """
  tree, parents = plain(config), ''
  steps = _steps(canonical_path(path))
  for depth, step in enumerate(steps, 1):
    children = _children(tree)
    if step not in children:
      raise ValueError(_unknown(path, parents, tree, steps[depth:]))
    tree, parents = children[step], _joined(parents, step)
  return tree


def _steps(path):
  found = _STEP.findall(path.removeprefix('config.'))
  return [int(index) if index else key for index, key in found]


def _replaced(tree, path, steps, value, parents=''):
  if not steps:
    return _checked(path, tree, value)
  step, *rest = steps
  children = _children(tree)
  if step not in children:
    raise ValueError(_unknown(path, parents, tree, rest))
  here = _joined(parents, step)
  children[step] = _replaced(children[step], path, rest, value, here)
  return children if isinstance(tree, dict) else tuple(children.values())


def _children(tree):
  if isinstance(tree, dict):
    return dict(tree)
  return dict(enumerate(tree)) if isinstance(tree, tuple) else {}


def _joined(parents, step):
  if isinstance(step, int):
    return f'{parents}[{step}]'
  return f'{parents}.{step}' if parents else step


def _paths(tree, parents=''):
  for step, child in _children(tree).items():
    here = _joined(parents, step)
    yield here
    yield from _paths(child, here)


def _unknown(path, parents, tree, rest):
  known = list(_paths(tree, parents))
  siblings = [_joined(parents, step) for step in _children(tree)]
  # A slip in the last step has its target next to it; one further up may not.
  short = path.removeprefix('config.')
  near = difflib.get_close_matches(short, siblings if not rest else known, 1)
  near = near or difflib.get_close_matches(short, known, 1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  inside = repr(parents) if parents else 'the config'
  names = ', '.join(sorted(str(step) for step in _children(tree)))
  if not names:
    return f'{path!r} is unknown: {inside} is {tree!r}, which has no fields.'
  return f'{path!r} is unknown.{hint} Known in {inside}: {names}.'


def _checked(path, old, new):
  if old is None or new is None or type(old) is type(new):
    return new
  if type(old) is float and type(new) is int:
    return float(new)
  kinds = {dict: 'a dict (a node)', int: 'an int', tuple: 'a tuple'}
  given, wanted = (
    kinds.get(type(value), f'a {type(value).__name__}') for value in (new, old)
  )
  raise ValueError(
    f'config.{path}={new!r} is {given}, but the field is {wanted} '
    f'({old!r}); give {wanted}.'
  )
