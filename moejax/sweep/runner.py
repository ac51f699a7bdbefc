"""Runs the cells of a sweep, each in its own folder, and resumes them.

A cell's folder `workdir/cells/<name>/` holds `config.json` (the resolved
config), `cell.json` (its name and overrides), `log.txt` (what it printed), what
the training function writes, and at the end `result.json` or `error.txt`.
"""

import contextlib
import csv
import importlib.util
import io
import json
import pathlib
import signal
import threading
import time
from typing import NamedTuple

from moejax import config_io, files, run_folder
from moejax.sweep import hyper
from moejax.sweep.cluster import Cluster
from moejax.sweep.pool import Pool
from moejax.sweep.status import Status

LAUNCHERS = {'local': Pool, 'ray': Cluster}


class _Job(NamedTuple):
  cell: hyper.Cell
  folder: pathlib.Path
  text: str  # config.json
  cost: float | None


def run(
  cells, base_config, workdir, train, *, jobs=1, log=print, launcher='local'
):
  """Trains every cell that has no result yet; one row for each cell, in order.

  A finished cell of the same config is skipped, a cut or failed one is run
  again in its folder, where the training function finds its checkpoint. Cells
  run in processes of their own, so a cell that raises or is killed becomes a
  row of status 'failed' and the rest goes on. The calling process must not
  hold the accelerator, and workers do not share one: use jobs=1 there. Cells
  start in the order of `config.labels.cost`, largest first, if there is one.

  Args:
    cells: list of `hyper.Cell`, from `hyper.cells`.
    base_config: the ConfigDict that the cells override.
    workdir: a local folder.
    train: import path of a function (config, workdir) -> dict of results.
      Result keys 'name', 'status' and 'overrides' are overwritten.
    jobs: worker processes; each gets an equal share of the cores.
    log: a function that prints one line.
    launcher: 'local' for processes of this machine, 'ray' for tasks of a
      cluster, see `cluster`.

  Returns:
    {'name', 'status': 'ok', 'overrides', **results} for each cell, or
    {'name', 'status': 'failed', 'overrides', 'error'}.

  Raises:
    ValueError: no cells, bad overrides, `train` or `jobs`, cells of equal
      config, or a folder of another config; all before anything starts.
    KeyboardInterrupt: on Ctrl-C and SIGTERM, once the workers have stopped.
  """
  if jobs < 1:
    raise ValueError(f'jobs={jobs}; use at least 1 worker process.')
  _refuse_missing(train)
  todo = _resolve(cells, base_config, files.folder(workdir) / 'cells')
  _refuse_other_configs(todo)
  with _only_sweep_in(files.folder(workdir)):
    rows = {job.cell.name: _finished(job) for job in todo}
    waiting = [job for job in todo if rows[job.cell.name] is None]
    if len(waiting) < len(todo):
      log(f'{len(todo) - len(waiting)} of {len(todo)} cells have a result.')
    waiting.sort(key=lambda job: -(job.cost or 0))
    if waiting:
      pool = LAUNCHERS[launcher](train, min(jobs, len(waiting)))
      _run_all(waiting, rows, pool, log)
  failed = [row for row in rows.values() if row['status'] == 'failed']
  if failed:
    log(f'{len(failed)} of {len(todo)} cells failed; a rerun retries them:')
  for row in failed:
    log(f'  {row["name"]}: {row["error"]}')
  return [rows[job.cell.name] for job in todo]


def _refuse_missing(train):
  module = train.rpartition('.')[0]
  try:
    found = bool(module) and importlib.util.find_spec(module) is not None
  except ImportError:
    found = False
  if not found:
    raise ValueError(
      f'train={train!r} names no module that can be imported; write a path '
      "like 'package.module.function'."
    )


def _resolve(cells, base_config, root):
  if not cells:
    raise ValueError('the sweep has no cells; get_hyper returned none.')
  jobs, by_text = [], {}
  for cell in cells:
    try:
      config = config_io.override(base_config, cell.overrides)
      text = config_io.to_json(config)
    except ValueError as error:
      raise ValueError(f'cell {cell.name!r}: {error}') from None
    if text in by_text:
      raise ValueError(
        f'cells {by_text[text]!r} and {cell.name!r} have the same config; '
        'remove one (does it only spell out a default?).'
      )
    by_text[text] = cell.name
    cost = (config.get('labels') or {}).get('cost')
    jobs.append(_Job(cell, root / cell.name, text, cost))
  return jobs


def _refuse_other_configs(jobs):
  problems = []
  for job in jobs:
    path = job.folder / 'config.json'
    if not path.exists():
      if (job.folder / 'result.json').exists():
        problems.append(f'{job.folder} holds a result but no config.json.')
      continue
    try:
      old = config_io.from_json(path.read_text())
    except ValueError as error:
      problems.append(f'{path} cannot be read: {error}')
      continue
    lines = run_folder.difference(old, config_io.from_json(job.text))
    if lines:
      changes = ''.join(f'\n  {line}' for line in lines)
      problems.append(f'{job.folder} holds another config:{changes}')
  if problems:
    shown = problems[:3]
    if len(problems) > len(shown):
      shown.append(f'... and {len(problems) - len(shown)} more folders.')
    raise ValueError(
      '\n'.join(shown) + '\nUse another workdir, restore the recipe, or delete '
      'these folders to run their cells afresh.'
    )


@contextlib.contextmanager
def _only_sweep_in(workdir):
  """Holds a lock on the folder; it is freed however this process ends."""
  try:
    import fcntl
  except ImportError:  # no such locks on this system
    yield
    return
  with open(workdir / '.sweep.lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f'workdir={str(workdir)!r}: another sweep is running there; wait for '
        'it, stop it, or use another workdir.'
      ) from None
    yield


def _finished(job):
  path = job.folder / 'result.json'
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(
      f'{path} cannot be read ({error}); delete it to run its cell again.'
    ) from None


def _prepare(job):
  job.folder.mkdir(parents=True, exist_ok=True)
  (job.folder / 'error.txt').unlink(missing_ok=True)
  cell = {'name': job.cell.name, 'overrides': job.cell.overrides}
  files.write_atomic(job.folder / 'cell.json', files.dumps(cell, indent=2))
  files.write_atomic(job.folder / 'config.json', job.text)


def _run_all(waiting, rows, pool, log):
  """Fills `rows` with the result of every waiting job."""
  total = len(waiting)
  running = {}
  with Status([job.cost for job in waiting], log) as status, _sigterm_raises():
    try:
      waiting.reverse()
      while waiting or running:
        while waiting and pool.has_idle():
          job = waiting.pop()
          _prepare(job)
          running[pool.start(job.folder)] = (job, time.monotonic())
        for worker, answer in pool.wait(timeout_s=1.0):
          job, start_s = running.pop(worker)
          row = _row(job, answer)
          rows[job.cell.name] = row
          status.finish(row, job.cost, time.monotonic() - start_s)
        status.refresh(len(running))
    except KeyboardInterrupt:
      log('Stopping: cells in progress may save; interrupt again to cut them.')
      try:
        pool.stop()
      finally:
        _forget_errors(running)
        done = total - len(waiting) - len(running)
        log(
          f'Stopped with {done} of {total} cells run. Run the same command '
          'again to resume: finished cells are skipped, cut ones go on from '
          'their last checkpoint.'
        )
      raise
    finally:
      pool.stop()


def _forget_errors(running):
  """Removes what cells wrote when they were told to stop: none has failed."""
  for job, _ in running.values():
    (job.folder / 'error.txt').unlink(missing_ok=True)


def _row(job, answer):
  # A worker may die between its result and its answer: the result counts.
  row = _finished(job)
  if row is not None:
    return row
  path = job.folder / 'error.txt'
  if not path.exists():
    log_path = job.folder / 'log.txt'
    lines = log_path.read_text(errors='replace').splitlines()[-20:]
    tail = '\n'.join(lines)
    files.write_atomic(path, f'{answer["error"]}\nIts log ends with:\n{tail}\n')
  return {
    'name': job.cell.name,
    'status': 'failed',
    'overrides': files.strict(job.cell.overrides),
    'error': answer['error'],
  }


@contextlib.contextmanager
def _sigterm_raises():
  """Turns SIGTERM into KeyboardInterrupt, where Python allows it."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def interrupt(signum, frame):
    raise KeyboardInterrupt(signal.Signals(signum).name)

  before = signal.signal(signal.SIGTERM, interrupt)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def write_csv(results, path):
  """Writes one line for each result, failed ones too, with flat columns.

  Nested dicts become dotted columns, lists are written as JSON, None and
  absent values are empty.
  """
  rows = [dict(_flat(row)) for row in results]
  found = [column for row in rows for column in row]
  columns = list(dict.fromkeys(['name', 'status', 'error', *found]))
  text = io.StringIO()
  table = csv.DictWriter(text, columns, restval='', lineterminator='\n')
  table.writeheader()
  table.writerows(rows)
  files.write_atomic(path, text.getvalue())


def _flat(row, parents=''):
  for key, value in row.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{parents}{key}.')
    elif isinstance(value, (list, tuple)):
      yield f'{parents}{key}', files.dumps(value)
    else:
      yield f'{parents}{key}', '' if value is None else files.strict(value)
