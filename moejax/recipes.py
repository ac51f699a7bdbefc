"""The file of a recipe: its module, its config, and what is wrong with it.

Nothing here imports jax, so that a wrong recipe is told at once.
"""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
import re
import traceback
from typing import Any

from ml_collections import ConfigDict

from moejax.nearest import hint

EXAMPLE = '--config=configs/tiny.py'


def default_workdir(path: str, argument: str | None) -> str:
  """`runs/tiny` for configs/tiny.py, `runs/tiny-smoke` for tiny.py:smoke."""
  name = pathlib.Path(path).stem
  if argument:
    name += '-' + re.sub(r'[^\w.=+-]+', '-', argument)
  return f'runs/{name}'


def load(path: str) -> Any:
  """Imports the file of a recipe.

  Raises:
    ValueError: no such file, or one that cannot be imported.
  """
  file = pathlib.Path(path)
  if not file.is_file() or file.suffix != '.py':
    kind = 'no Python file' if file.is_file() else 'no file'
    kind = 'a folder' if file.is_dir() else kind
    known = map(str, pathlib.Path('configs').rglob('*.py'))
    raise ValueError(
      f'--config={path!r} is {kind}{hint(path, known)}; give the path of a '
      f'recipe, such as {EXAMPLE}.'
    )
  spec = importlib.util.spec_from_file_location(f'recipe_{file.stem}', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except Exception as error:
    raise ValueError(_blame(error, path)) from error
  return module


def get_config(recipe: Any, path: str, argument: str | None) -> ConfigDict:
  """The recipe's config for its argument.

  Raises:
    ValueError: there is no get_config, it refuses the argument, or it fails.
  """
  if not callable(getattr(recipe, 'get_config', None)):
    raise ValueError(
      f'--config={path!r} defines no get_config(), so it is no recipe; add it, '
      f'or give another file, such as {EXAMPLE}.'
    )
  if argument is not None and not _parameters(recipe.get_config):
    raise ValueError(
      f'--config={path}:{argument}: this recipe takes no argument; leave out '
      f'{":" + argument!r}.'
    )
  config = call(path, recipe.get_config, argument)
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f'--config={path!r}: get_config() returned a {type(config).__name__}; it '
      'must return a ConfigDict, such as configs.common.base().'
    )
  return config


def call(path: str, function: Any, *arguments: Any) -> Any:
  """What a function of the recipe returns, given the arguments it takes.

  Raises:
    ValueError: it failed; naming the line of the recipe.
  """
  try:
    return function(*arguments[: _parameters(function)])
  except Exception as error:
    raise ValueError(_blame(error, path)) from error


def _parameters(function) -> int:
  return len(inspect.signature(function).parameters)


def _blame(error: Exception, path: str) -> str:
  """One sentence on what a recipe raised, and in which of its lines."""
  if isinstance(error, SyntaxError):
    return (
      f'--config={path!r} line {error.lineno}: {error.msg}; correct the recipe.'
    )
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if f.filename == path]
  line = f' line {lines[-1]}' if lines else ''
  if isinstance(error, ValueError):
    return f'--config={path!r}{line}: {error}'
  return (
    f'--config={path!r}{line} raised {type(error).__name__}: {error}; correct '
    'the recipe, or see --traceback.'
  )
