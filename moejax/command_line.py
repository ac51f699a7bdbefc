"""Words of the command line to a command: the recipe, its config, the mode.

Nothing here imports jax, so that a wrong word is told at once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moejax import (
  command_flags,
  config_io,
  processes,
  recipes,
  run_folder,
)
from moejax.command_flags import ABROAD, LAUNCHERS, TOGETHER
from moejax.sweep import cluster, hyper

_OVERRIDE = re.compile(r'--?config\.([^=]+)(?:=(.*))?', re.DOTALL)


class Command(NamedTuple):
  """What the command line asks for.

  Attributes:
    mode: one of command_flags.MODES.
    workdir: folder of the run.
    prompts: texts to continue; empty takes the config's own.
    path: file of the recipe; None without --config.
    recipe: its module.
    argument: what stands after the colon in --config=file.py:argument.
    config: with its overrides, plain and finite; None to fit a table.
    table: for --mode=fit: its file, the law and the columns.
    topology: for --mode=aot and --mode=plan.
    plan_compile: for --mode=plan: how many meshes to compile.
    dry_run: whether a sweep is only told.
    launcher: of a sweep's cells, one of command_flags.LAUNCHERS.
    processes: that run it together; None for this one alone.
  """

  mode: str
  workdir: str | None
  prompts: tuple[str, ...]
  path: str | None
  recipe: Any
  argument: str | None
  config: ConfigDict | None
  table: tuple[str, str, str] | None = None
  topology: str | None = None
  plan_compile: int = 0
  dry_run: bool = False
  launcher: str = LAUNCHERS[0]
  processes: processes.Processes | None = None

  @property
  def is_sweep(self) -> bool:
    return hasattr(self.recipe, 'get_hyper')


def parse(words: Sequence[str]) -> Command | None:
  """The command that the words after the program's name ask for.

  Returns:
    The command, or None where --help is asked for.

  Raises:
    ValueError: naming the first word that is wrong, the rule and the fix.
  """
  values = command_flags.define()
  overrides, rest = _split(values.read_flags_from_files(list(words)))
  command_flags.read(values, rest)
  if values.help:
    return None
  _check_modes(values)
  if (values.topology is not None) != (values.mode in ABROAD):
    raise ValueError(
      f'--topology={values.topology} with --mode={values.mode}: --mode=aot '
      'and --mode=plan need a topology, and no other mode takes one; as in '
      '--mode=aot --topology=v5p:8x8x16.'
    )
  dry_run = values['dry-run'].value
  if values.mode == 'fit' or values.data or values.form or values.columns:
    return _fit_command(values, overrides)
  path = recipe = argument = None
  where = values.workdir
  if values.config is not None:
    path, colon, argument = values.config.partition(':')
    argument = argument if colon else None
    recipe = recipes.load(path)
    config = recipes.get_config(recipe, path, argument)
    where = where or recipes.default_workdir(path, argument)
  elif values.mode == 'train' or (where is None and values.mode in ABROAD):
    raise ValueError(
      f'--config is missing; give a recipe, such as {recipes.EXAMPLE}.'
    )
  elif where is None:
    raise ValueError(
      f'--mode={values.mode} needs the folder of a run; give --workdir, such '
      'as --workdir=runs/tiny.'
    )
  else:
    config = run_folder.stored_config(where)
  config = apply(config, overrides)
  prompts = tuple(values.prompt)
  if dry_run:
    _check_sweep('--dry-run', recipe, path)
  if values.launcher == 'ray':
    _check_sweep('--launcher=ray', recipe, path)
    cluster.check_installed()
  return Command(
    values.mode,
    where,
    prompts,
    path,
    recipe,
    argument,
    config,
    topology=values.topology,
    plan_compile=values.plan_compile,
    dry_run=dry_run,
    launcher=values.launcher,
    processes=_processes(values, hasattr(recipe, 'get_hyper')),
  )


def _check_modes(values):
  """Refuses what the mode does not read."""
  prompt = values.prompt and f'--prompt={values.prompt[0]!r}'
  compiles = values.plan_compile and f'--plan_compile={values.plan_compile}'
  together = ' and '.join(f'--mode={mode}' for mode in TOGETHER)
  for given, what, modes in (
    (prompt, '--mode=generate', ('generate',)),
    (compiles, '--mode=plan', ('plan',)),
    (values['dry-run'].value and '--dry-run', 'a sweep', ('train',)),
    (values.launcher == 'ray' and '--launcher=ray', 'a sweep', ('train',)),
    (values.coordinator and '--coordinator', together, TOGETHER),
    (values.distributed and '--distributed', together, TOGETHER),
  ):
    if given and values.mode not in modes:
      raise ValueError(
        f'{given} is for {what}, but --mode={values.mode}; leave out one, or '
        f'add --mode={modes[0]}.'
      )


def _check_sweep(word, recipe, path):
  if not hasattr(recipe, 'get_hyper'):
    raise ValueError(
      f'{word} is for a sweep, but --config={path!r} has no get_hyper; give '
      f'a recipe that has, such as configs/scaling.py, or leave out {word}.'
    )


def _processes(values, is_sweep) -> processes.Processes | None:
  asked = processes.parse(
    values.coordinator,
    values.processes,
    values.process,
    values.distributed,
    values.process_timeout,
  )
  if asked is not None and is_sweep:
    raise ValueError(
      'a sweep is run by one process; leave out --coordinator and '
      '--distributed, which are for --mode=train and --mode=evaluate of one '
      'run.'
    )
  return asked


def _fit_command(values, overrides) -> Command:
  if values.mode != 'fit':
    given = next(n for n in ('data', 'form', 'columns') if values[n].value)
    raise ValueError(
      f'--{given}={values[given].value!r} is for --mode=fit, but --mode='
      f'{values.mode}; add --mode=fit.'
    )
  if overrides or values.config:
    raise ValueError('--mode=fit reads a table, no recipe; leave out --config.')
  for name in ('data', 'form'):
    if not values[name].value:
      raise ValueError(
        f'--mode=fit needs --{name}; give a table and a law, such as --data='
        'runs/scaling/results.csv --form=chinchilla.'
      )
  table = (values.data, values.form, values.columns or '')
  return Command('fit', values.workdir, (), None, None, None, None, table)


def apply(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
  """A copy of `config` with the fields at these paths read from text.

  Raises:
    ValueError: an unknown path, a value of another type, or a number in the
      config that is not finite.
  """
  typed = {}
  for path, text in overrides.items():
    try:
      old = config_io.lookup(config, path)
    except ValueError as error:
      raise ValueError(f'--config.{path}={text}: {error}') from error
    typed[f'config.{path}'] = _typed(text, old)
  return config_io.override(config, typed)


def get_cells(command: Command) -> list[hyper.Cell]:
  """The cells of the recipe's sweep.

  Raises:
    ValueError: get_hyper fails, or its cells are no cells.
  """
  function = command.recipe.get_hyper
  return hyper.cells(
    recipes.call(command.path, function, hyper, command.argument)
  )


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
  """Overrides by path, and the other words."""
  overrides, rest = {}, []
  for word in words:
    match = _OVERRIDE.fullmatch(word)
    if match is None:
      rest.append(word)
      continue
    path, text = match.groups()
    if text is None:
      raise ValueError(
        f'--config.{path} has no value; write --config.{path}=VALUE.'
      )
    if overrides.setdefault(path, text) != text:
      raise ValueError(
        f'--config.{path} is given twice, as {overrides[path]!r} and {text!r}; '
        'keep one.'
      )
  return overrides, rest


def _typed(text: str, old: Any) -> Any:
  """The value that `text` stands for, where `old` stood."""
  if isinstance(old, str):
    return None if text == 'None' else text
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    pass
  try:
    return float(text)  # nan and inf, which no literal is
  except ValueError:
    return text
