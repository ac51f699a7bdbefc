"""Grids of config overrides: what `get_hyper(hyper)` of a recipe returns.

Every function returns a list of dicts {dotted path: value}, one for each cell.
Paths may start with 'config.'. The bare key 'name' is not a config path: it
names the cell, and with it its folder.
"""

import hashlib
import itertools
import json
import re
from typing import Any, NamedTuple

from moejax import config_io

_MAX_NAME = 80
_SAFE = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.,=+-]{0,99}')


class Cell(NamedTuple):
  """One run of a sweep: the name of its folder, and what it overrides."""

  name: str
  overrides: dict[str, Any]


def sweep(path, values):
  """One cell for each value of the field at `path`."""
  if isinstance(values, str) or hasattr(values, 'items'):
    raise ValueError(
      f'sweep({path!r}) got one {type(values).__name__} as its values; wrap '
      f'it in a list: [{values!r}].'
    )
  path = config_io.canonical_path(path)
  cells_ = [{path: config_io.plain(value, path)} for value in values]
  if not cells_:
    raise ValueError(f'sweep({path!r}) has no values; give at least one.')
  return cells_


def fixed(path, value, length=1):
  """`length` cells with the same value, to be zipped or multiplied."""
  if length < 1:
    raise ValueError(f'fixed({path!r}) has length={length}; use at least 1.')
  return sweep(path, [value]) * length


def product(sweeps, name=None):
  """Every combination of one cell from each sweep; the last varies fastest.

  Args:
    sweeps: lists of cells.
    name: a prefix for the names of these cells, as in name='dense' for
      'dense-width=64'; None leaves the names alone.

  Raises:
    ValueError: two sweeps set one path.
  """
  merged = [_merge(group, 'product') for group in itertools.product(*sweeps)]
  return merged if name is None else [_prefixed(cell, name) for cell in merged]


def zipit(sweeps):
  """The first cells of all sweeps merged, then the second ones, and so on.

  Raises:
    ValueError: the lengths differ, or two sweeps set one path.
  """
  sweeps = [list(cells_) for cells_ in sweeps]
  lengths = [len(cells_) for cells_ in sweeps]
  if len(set(lengths)) > 1:
    raise ValueError(
      f'zipit got sweeps of lengths {lengths}; they must be equal: extend the '
      'shorter, or use fixed(path, value, length=...) or product.'
    )
  return [_merge(group, 'zipit') for group in zip(*sweeps, strict=True)]


def chainit(sweeps):
  """The cells of all sweeps, one sweep after the other."""
  return [dict(cell) for cells_ in sweeps for cell in cells_]


def cells(overrides):
  """A Cell for each dict of overrides, with a readable, unique, safe name.

  A name depends on the cell alone, so that cells which are added later leave
  the folders of finished ones where they are; only where two names are equal
  do both get a short hash. Names that the recipe gave ('name') are kept.

  Raises:
    ValueError: two cells are equal, or were given one name or an unsafe one.
  """
  overrides = [_canonical(cell) for cell in overrides]
  _refuse_duplicates(overrides)
  names = [_name(cell) for cell in overrides]
  folded = [name.casefold() for name in names]  # some disks ignore case
  for i, cell in enumerate(overrides):
    if folded.count(folded[i]) == 1:
      continue
    if 'name' in cell:
      raise ValueError(
        f'{folded.count(folded[i])} cells are named {names[i]!r}; give each '
        "its own 'name', or use product(..., name=...), which adds the values."
      )
    names[i] = _hashed(names[i], cell)
  return [
    Cell(name, {path: v for path, v in cell.items() if path != 'name'})
    for name, cell in zip(names, overrides, strict=True)
  ]


def _merge(group, function):
  merged = {}
  for cell in map(_canonical, group):
    twice = (merged.keys() & cell.keys()) - {'name'}
    if twice:
      raise ValueError(
        f'{function} got {min(twice)!r} from two sweeps; set each path in one '
        'sweep only, or join alternatives with chainit.'
      )
    if 'name' in merged and 'name' in cell:
      cell = {**cell, 'name': f'{merged["name"]}-{cell["name"]}'}
    merged.update(cell)
  return merged


def _canonical(cell):
  tree = {}
  for path, value in cell.items():
    short = path if path == 'name' else config_io.canonical_path(path)
    if short in tree:
      raise ValueError(
        f"one cell sets {short!r} twice, with and without 'config.'; keep one."
      )
    tree[short] = config_io.plain(value, path)
  return tree


def _prefixed(cell, name):
  rest = {path: value for path, value in cell.items() if path != 'name'}
  full = f'{name}-{_name(cell)}' if cell else name
  return {
    **rest,
    'name': full if len(full) <= _MAX_NAME else _hashed(full, cell),
  }


def _refuse_duplicates(overrides):
  seen = {}
  for i, cell in enumerate(overrides):
    key = _digest({path: v for path, v in cell.items() if path != 'name'})
    if key in seen:
      raise ValueError(
        f'cells {seen[key]} and {i} have the same overrides {cell}; remove '
        "one, or sweep a seed, as in sweep('seed', range(3))."
      )
    seen[key] = i


def _name(cell):
  if 'name' in cell:
    return _given(cell['name'])
  tails = _tails(cell)
  parts = [f'{tails[path]}={_short(value)}' for path, value in cell.items()]
  name = re.sub(r'[^A-Za-z0-9_.,=+-]+', '-', ','.join(parts)) or 'base'
  return name if len(name) <= _MAX_NAME else _hashed(name, cell)


def _given(name):
  if not isinstance(name, str) or not _SAFE.fullmatch(name):
    raise ValueError(
      f'name={name!r} cannot name a folder; use 1 to 100 letters, digits or '
      "any of '_.,=+-', and start with a letter, a digit or '_'."
    )
  return name


def _tails(paths):
  """The shortest tail of each path that no other path of the cell ends in."""
  tails = {}
  for path in paths:
    steps = path.split('.')
    for length in range(1, len(steps) + 1):
      tail = steps[-length:]
      others = [p for p in paths if p.split('.')[-length:] == tail]
      if len(others) == 1 or length == len(steps):
        break
    tails[path] = '.'.join(tail)
  return tails


def _short(value):
  if isinstance(value, tuple):
    return 'x'.join(map(_short, value)) or 'empty'
  if isinstance(value, dict):
    kind = str(value.get('kind', 'node')).rsplit('.', 1)[-1]
    return kind if set(value) == {'kind'} else f'{kind}-{_digest(value)}'
  return str(value)


def _hashed(name, cell):
  return f'{name[: _MAX_NAME - 9]}-{_digest(cell)}'


def _digest(tree):
  text = json.dumps(tree, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]
