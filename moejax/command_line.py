"""Words of the command line to a command: the recipe, its config, the mode.

Nothing here imports jax, so that a wrong word is told at once.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import pathlib
import re
import textwrap
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from moejax import config_io, processes, run_folder
from moejax.nearest import hint, nearest
from moejax.sweep import cluster, hyper

MODES = ('train', 'evaluate', 'generate', 'fit', 'aot', 'plan')
LAUNCHERS = ('local', 'ray')  # of sweeps
TOGETHER = ('train', 'evaluate')  # by several processes
ABROAD = ('aot', 'plan')  # for machines that are not here
EXAMPLE = '--config=configs/tiny.py'
HELP = """\
moejax trains sparse language models and measures them.

  python -m moejax.main --config=configs/scaling.py
  python -m moejax.main --config=configs/scaling.py --dry-run
  python -m moejax.main --config=configs/tiny.py --config.train.steps=50
  python -m moejax.main --mode=generate --workdir=runs/tiny --prompt='def '
  python -m moejax.main --mode=fit --form=chinchilla --data=runs.csv
  python -m moejax.main --mode=aot --config=configs/moe.py --topology=v5e:2x4
  python -m moejax.main --mode=plan --config=configs/moe.py --topology=v5e:2x4

A recipe with get_hyper is a sweep of runs, any other one a single run. The
same command again goes on from the last checkpoint.

{flags}
  --config.a.b=VALUE
      Overrides one field of the config; may be repeated. VALUE is Python:
      3, 1e-3, true, None, "('a', 'b')"; text needs no quotes.

Exit codes: 0 done, 1 a run failed, 2 the input is wrong, 3 the program does
not fit, 130 Ctrl-C, 143 ended by SIGTERM after saving.
"""
FLAGS = {
  'config': 'Recipe: a Python file with get_config(). Text after a colon is '
  'its argument, as in configs/tiny.py:smoke.',
  'workdir': 'Folder of the run; runs/RECIPE if not given. To evaluate or '
  'generate, a folder alone is enough: it holds its config.',
  'mode': f'What to do: {", ".join(MODES[:-1])} or {MODES[-1]}; {MODES[0]} if '
  'not given.',
  'dry-run': 'Prints the cells of a sweep, what each costs and which are '
  'dropped, and runs nothing.',
  'prompt': 'Text to continue with --mode=generate; may be repeated; - reads '
  'it from standard input.',
  'data': 'Table of runs (.csv) for --mode=fit.',
  'form': 'Law to fit: a name in moejax/scaling/forms, such as chinchilla.',
  'columns': 'Columns of the table for --mode=fit, as in '
  'N=params,D=tokens,value=loss; usual names are found by themselves.',
  'topology': 'Machine to compile for with --mode=aot, or to search meshes for '
  'with --mode=plan, as in v5p:8x8x16; none is needed.',
  'plan_compile': 'How many of the best meshes of --mode=plan to compile, '
  'minutes each; 0 if not given.',
  'launcher': 'Where the cells of a sweep run: local, on this machine, or ray, '
  'as tasks of a Ray cluster; config.sweep.jobs of them at once.',
  'coordinator': 'HOST:PORT of process 0, to train with one process on each '
  'host; all get the same, and a free port of that host.',
  'processes': 'How many processes there are.',
  'process': 'Which of them this is, from 0. It alone prints and writes if 0.',
  'distributed': 'auto asks the cluster for these three: TPU pods, Slurm, Open '
  'MPI and Kubernetes tell.',
  'process_timeout': 'Seconds to wait for a process that does not come or does '
  f'not answer, then to end with a line; {processes.TIMEOUT_S} if not given.',
  'traceback': 'Shows where in the code an error arose.',
}
_INDENT = {'initial_indent': ' ' * 6, 'subsequent_indent': ' ' * 6}
_OVERRIDE = re.compile(r'--?config\.([^=]+)(?:=(.*))?', re.DOTALL)


class Command(NamedTuple):
  """What the command line asks for.

  Attributes:
    mode: one of MODES.
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
    launcher: of a sweep's cells, one of LAUNCHERS.
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
  values = _flags()
  overrides, rest = _split(values.read_flags_from_files(list(words)))
  _read(values, rest)
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
    recipe = load_recipe(path)
    config = get_config(recipe, path, argument)
    where = where or default_workdir(path, argument)
  elif values.mode == 'train' or (where is None and values.mode in ABROAD):
    raise ValueError(f'--config is missing; give a recipe, such as {EXAMPLE}.')
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


def help_text() -> str:
  """What --help prints."""
  lines = []
  for name, text in FLAGS.items():
    lines += [f'  --{name}', *textwrap.wrap(text, 74, **_INDENT)]
  return HELP.format(flags='\n'.join(lines)).rstrip()


def default_workdir(path: str, argument: str | None) -> str:
  """`runs/tiny` for configs/tiny.py, `runs/tiny-smoke` for tiny.py:smoke."""
  name = pathlib.Path(path).stem
  if argument:
    name += '-' + re.sub(r'[^\w.=+-]+', '-', argument)
  return f'runs/{name}'


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


def load_recipe(path: str) -> Any:
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
  config = _call(path, recipe.get_config, argument)
  if not isinstance(config, ConfigDict):
    raise ValueError(
      f'--config={path!r}: get_config() returned a {type(config).__name__}; it '
      'must return a ConfigDict, such as configs.common.base().'
    )
  return config


def get_cells(command: Command) -> list[hyper.Cell]:
  """The cells of the recipe's sweep.

  Raises:
    ValueError: get_hyper fails, or its cells are no cells.
  """
  function = command.recipe.get_hyper
  return hyper.cells(_call(command.path, function, hyper, command.argument))


def _call(path, function, *arguments):
  """Calls a function of the recipe with as many arguments as it takes."""
  try:
    return function(*arguments[: _parameters(function)])
  except Exception as error:
    raise ValueError(_blame(error, path)) from error


def _parameters(function) -> int:
  return len(inspect.signature(function).parameters)


def _flags() -> flags.FlagValues:
  """Fresh flags: nothing is shared with what other libraries define."""
  values = flags.FlagValues()
  flags.DEFINE_string('config', None, '', values)
  flags.DEFINE_string('workdir', None, '', values)
  flags.DEFINE_enum('mode', MODES[0], MODES, '', values)
  flags.DEFINE_multi_string('prompt', [], '', values)
  flags.DEFINE_string('data', None, '', values)
  flags.DEFINE_string('form', None, '', values)
  flags.DEFINE_string('columns', None, '', values)
  flags.DEFINE_string('topology', None, '', values)
  flags.DEFINE_integer('plan_compile', 0, '', flag_values=values, lower_bound=0)
  flags.DEFINE_enum('launcher', LAUNCHERS[0], LAUNCHERS, '', values)
  flags.DEFINE_string('coordinator', None, '', values)
  flags.DEFINE_integer('processes', None, '', 1, flag_values=values)
  flags.DEFINE_integer('process', None, '', 0, flag_values=values)
  flags.DEFINE_enum('distributed', None, ('auto',), '', values)
  flags.DEFINE_integer('process_timeout', None, '', 1, flag_values=values)
  flags.DEFINE_bool('dry-run', False, '', values)
  flags.DEFINE_bool('traceback', False, '', values)
  flags.DEFINE_bool('help', False, '', short_name='h', flag_values=values)
  return values


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


def _read(values: flags.FlagValues, words: Sequence[str]) -> None:
  try:
    stray = values(['moejax', *words])[1:]
  except flags.UnrecognizedFlagError as error:
    name = error.flagname
    raise ValueError(
      f'--{name} is no flag; {nearest(name, [*FLAGS, "help"])}; overrides '
      'look like --config.train.steps=100.'
    ) from error
  except flags.Error as error:
    raise ValueError(f'{error}; see --help.') from error
  if stray:
    raise ValueError(
      f'stray argument {stray[0]!r}; flags begin with --, and overrides look '
      'like --config.train.steps=100.'
    )
  for name in set(FLAGS) - {'prompt'}:
    flag = values[name]
    if flag.present > 1:
      raise ValueError(
        f'--{name} is given {flag.present} times, last as {flag.value!r}; keep '
        'one.'
      )


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
