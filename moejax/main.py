"""Runs a recipe: `python -m moejax.main --help` says how."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# jax is imported later, so that a wrong command line is told at once.
from moejax import (
  command_flags,
  command_line,
  config_io,
  fields,
  files,
  host,
  processes,
  run_folder,
)
from moejax.command_line import Command
from moejax.processes import (
  CTRL_C,
  DOES_NOT_FIT,
  FAILED,
  TERMINATED,
  WRONG_INPUT,
)
from moejax.sweep import hyper


def main(argv: Sequence[str] | None = None) -> None:
  """The command: parses, checks, runs; ends with an exit code."""
  words = list(sys.argv if argv is None else argv)[1:]
  try:
    command = command_line.parse(words)
    if command is None:
      print(command_flags.help_text())
      sys.exit(0)
    code = run(command)
  except ValueError as error:
    if '--traceback' in words:
      raise
    tell(error)
    code = WRONG_INPUT
  except KeyboardInterrupt as stopped:
    code = TERMINATED if 'SIGTERM' in stopped.args else CTRL_C
    print(
      'stopped; the same command goes on from the last checkpoint.',
      file=sys.stderr,
      flush=True,
    )
  sys.exit(code)


def run(command: Command) -> int:
  """Does what the command's mode says; returns the exit code."""
  if command.mode == 'fit':
    return run_fit(command)
  if command.is_sweep and command.mode != 'train':
    raise ValueError(
      f'--mode={command.mode} is for one run, but the recipe is a sweep; leave '
      f'out --config and give --workdir={command.workdir}/cells/NAME.'
    )
  fields.check(command.config)
  if command.is_sweep:
    return run_sweep(command)
  with processes.together(command.processes):
    return RUNNERS[command.mode](command)


def run_training(command: Command) -> int:
  """Trains, or prints the result of a run that is finished."""
  config, folder = command.config, files.folder(command.workdir)
  result = run_folder.result(config, folder)
  if result is not None:
    if not processes.is_first():
      return 0
    print(f'finished before; this is {folder / "result.json"}', flush=True)
    show(result)
    return 0

  from moejax import train

  try:
    result = train.run(config, folder, sample=True)
  except train.Interrupted as stopped:
    if processes.is_first():
      print(stopped, flush=True)
    return TERMINATED
  except train.Diverged as error:
    tell(error)
    return FAILED
  if processes.is_first():
    files.write_atomic(
      folder / 'result.json', files.dumps(result, indent=2) + '\n'
    )
    show(result)
  return 0


def run_sweep(command: Command) -> int:
  """Trains every cell of the recipe's sweep, then writes its report."""
  config = command.config
  cells = command_line.get_cells(command)
  for cell in cells:
    try:
      fields.check(config_io.override(config, cell.overrides))
    except ValueError as error:
      raise ValueError(f'cell {cell.name!r}: {error}') from error

  from moejax import sweep
  from moejax.build import build

  report = build(config.sweep.report, 'config.sweep.report')
  if command.dry_run or config.sweep.plan is not None:
    cells, text = plan_sweep(command, cells)
    print(text, flush=True)
    if command.dry_run:
      return 0
    path = files.folder(command.workdir) / 'plan.md'
    files.write_atomic(path, text)
  results = sweep.run(
    cells,
    config,
    command.workdir,
    'moejax.train.run',
    jobs=config.sweep.jobs,
    launcher=command.launcher,
  )
  table = pathlib.Path(command.workdir) / 'results.csv'
  sweep.write_csv(results, table)
  failed = sum(row['status'] != 'ok' for row in results)
  if report is not None and failed < len(results):
    report(results, command.workdir)
  print(f'results: {table}', flush=True)
  return FAILED if failed else 0


def plan_sweep(
  command: Command, cells: list[hyper.Cell]
) -> tuple[list[hyper.Cell], str]:
  """The cells that are run, by the recipe's plan, and the plan as text."""
  import jax

  from moejax.build import build
  from moejax.scaling import plan

  # Models are only traced here: the accelerator is for the workers.
  jax.config.update('jax_platforms', 'cpu')
  config = command.config
  planned = build(config.sweep.plan, 'config.sweep.plan') or plan.Plan()
  try:
    outcome = planned(cells, config)
  except ValueError as error:
    raise ValueError(f'config.sweep.plan: {error}') from error
  argument = f':{command.argument}' if command.argument else ''
  title = f'Plan of {command.path}{argument}'
  return outcome.cells, plan.markdown(title, outcome, config.sweep.jobs)


def run_evaluation(command: Command) -> int:
  """Prints the losses of the newest checkpoint on held-out text."""
  run_folder.check_trained(command.config, command.workdir)

  from moejax import evaluate

  values = evaluate.run(command.config, command.workdir)
  if not processes.is_first():
    return 0
  print(json.dumps(values, indent=2), flush=True)
  return 0


def run_generation(command: Command) -> int:
  """Prints each prompt with its continuation by the newest checkpoint."""
  run_folder.check_trained(command.config, command.workdir)
  prompts = command.prompts or (command.config.infer.prompt,)
  if None in prompts:
    raise ValueError(
      "config.infer.prompt=None gives nothing to continue; add --prompt='def '."
    )
  prompts = [_stdin() if prompt == '-' else prompt for prompt in prompts]

  from moejax import generate

  texts = generate.run(command.config, command.workdir, prompts)
  for prompt, text in zip(prompts, texts, strict=True):
    print(readable(prompt + text), flush=True)
  return 0


def run_fit(command: Command) -> int:
  """Prints a law fitted to a table of runs."""
  from moejax.scaling import fit_table

  print(fit_table.run(*command.table, workdir=command.workdir), flush=True)
  return 0


def run_aot(command: Command) -> int:
  """Prints what a step would cost on a machine that is not here."""
  from moejax import aot

  report = aot.check(command.config, command.topology)
  print(report.text(), flush=True)
  return 0 if report.fits else DOES_NOT_FIT


def run_plan(command: Command) -> int:
  """Prints which meshes and exchanges suit a machine that is not here."""
  import jax

  from moejax import plan

  jax.config.update('jax_platforms', 'cpu')
  outcome = plan.make(command.config, command.topology)
  try:
    for part in plan.text(outcome, command.plan_compile):
      print(part, flush=True)
  except plan.NothingFits as error:
    tell(error)
    return DOES_NOT_FIT
  return 0


def show(result: Mapping[str, Any]) -> None:
  """Prints a result: its numbers, then the sample as it reads."""
  numbers = {name: v for name, v in result.items() if name != 'sample'}
  print(files.dumps(numbers, indent=2), flush=True)
  if result.get('sample') is not None:
    print(f'\n{readable(result["sample"])}', flush=True)


RUNNERS = {
  'train': run_training,
  'evaluate': run_evaluation,
  'generate': run_generation,
  'aot': run_aot,
  'plan': run_plan,
}


def tell(error: Exception) -> None:
  """Prints one line that says what is wrong."""
  text = ' '.join(str(error).split()) or type(error).__name__
  print(f'error: {text}', file=sys.stderr, flush=True)


def readable(text: str) -> str:
  """`text` without what would steer a terminal: a model may write anything."""
  return ''.join(
    c if c.isprintable() or c in '\n\t' else '\ufffd' for c in text
  )


def _stdin() -> str:
  return sys.stdin.read().removesuffix('\n')


if __name__ == '__main__':
  host.one_blas_thread()
  host.restart_with_huge_pages()
  main()
