r"""Runs a recipe.

  python -m moejax.main --config=configs/scaling.py
  python -m moejax.main --config=configs/tiny.py --config.train.steps=50
  python -m moejax.main --config=configs/tiny.py --mode=generate --prompt='def '

A recipe with `get_hyper` is a sweep, any other one a training run. Exit codes:
0 done, 1 a run or a cell failed, 2 the input is wrong, 143 ended by SIGTERM
after saving.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Recipe, such as configs/tiny.py or configs/tiny.py:smoke.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the run; runs/<recipe> if not given.'
)
MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'evaluate', 'generate'], 'What to do.'
)
PROMPT = flags.DEFINE_multi_string(
  'prompt', [], 'Text to continue, with --mode=generate; may be repeated.'
)
WRONG_INPUT = 2


def main() -> None:
  """The command: parses, checks, runs, and turns errors into one line."""
  try:
    recipe, config = parse(sys.argv)
    code = run(recipe, config)
  except ValueError as error:
    fail(error)
  sys.exit(code)


def parse(argv: Sequence[str]) -> tuple[Any, ConfigDict]:
  """The recipe's module and the config with its overrides.

  Raises:
    ValueError: for whatever is wrong with the command line.
  """
  try:
    rest = flags.FLAGS(list(argv))
  except flags.Error as error:
    raise ValueError(error) from None
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f'{_first_line(error)}; see the recipe for its fields.'
    ) from None
  except (OSError, ImportError) as error:
    raise ValueError(
      f'--config: {_first_line(error)}; give the path of a recipe, such as '
      'configs/tiny.py.'
    ) from None
  if rest[1:]:
    raise ValueError(
      f'stray argument {rest[1]!r}; flags begin with --, and overrides look '
      'like --config.train.steps=100.'
    )
  if CONFIG.value is None:
    raise ValueError(
      '--config is missing; give a recipe, such as --config=configs/tiny.py.'
    )
  return load_recipe(_recipe_path()), CONFIG.value


def run(recipe: Any, config: ConfigDict) -> int:
  """Does what --mode says; returns the exit code."""
  # Only now, so that a wrong command line is told at once.
  from moejax import evaluate, generate, train

  workdir = WORKDIR.value or f'runs/{pathlib.Path(_recipe_path()).stem}'
  if MODE.value == 'evaluate':
    print(json.dumps(evaluate.run(config, workdir), indent=2))
    return 0
  if MODE.value == 'generate':
    prompts = PROMPT.value or [config.infer.prompt]
    texts = generate.run(config, workdir, prompts)
    for prompt, text in zip(prompts, texts, strict=True):
      print(prompt + text)
    return 0
  if hasattr(recipe, 'get_hyper'):
    return run_sweep(recipe, config, workdir)
  try:
    result = train.run(config, workdir)
  except train.Interrupted as stopped:
    print(stopped, flush=True)
    return 143
  except train.Diverged as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(json.dumps(result, indent=2))
  return 0


def run_sweep(recipe: Any, config: ConfigDict, workdir: str) -> int:
  """Trains every cell of the recipe's sweep, then writes its report."""
  from moejax import config_io, hyper, sweep, validate
  from moejax.build import build

  cells = hyper.cells(recipe.get_hyper(hyper, _recipe_argument()))
  for cell in cells:
    validate.check_static(config_io.override(config, cell.overrides))
  report = build(config.sweep.report, 'config.sweep.report')
  results = sweep.run(
    cells, config, workdir, 'moejax.train.run', jobs=config.sweep.jobs
  )
  sweep.write_csv(results, pathlib.Path(workdir) / 'results.csv')
  failed = sum(row['status'] != 'ok' for row in results)
  if report is not None and failed < len(results):
    report(results, workdir)
  print(f'results: {workdir}/results.csv', flush=True)
  return 1 if failed else 0


def load_recipe(path: str) -> Any:
  """Imports the file of a recipe, for its `get_hyper` and `PAPER`."""
  spec = importlib.util.spec_from_file_location('recipe', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def fail(error: BaseException) -> None:
  """Ends with one line that says what is wrong."""
  print(f'error: {_first_line(error)}', file=sys.stderr, flush=True)
  sys.exit(WRONG_INPUT)


def _recipe_path() -> str:
  return config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]


def _recipe_argument() -> str | None:
  _, found, argument = config_flags.get_config_filename(
    flags.FLAGS['config']
  ).partition(':')
  return argument if found else None


def _first_line(error: BaseException) -> str:
  # str(KeyError) is the repr of its message.
  plain = isinstance(error, KeyError) and error.args
  text = str(error.args[0] if plain else error).strip()
  return ' '.join(text.split()) or type(error).__name__


if __name__ == '__main__':
  main()
