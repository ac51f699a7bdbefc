"""A process that trains the cells of a sweep, one after the other.

`sweep.run` starts it as `python -m moejax.sweep.worker <function> [cpu ...]`
and writes the folder of a cell to its standard input, a line at a time; for
each it answers with one line of JSON. Imports are paid once for many cells.
When the input closes, the parent is gone and the process ends at once, so that
no cell is ever trained by two processes.
"""

import faulthandler
import gc
import importlib
import json
import os
import pathlib
import queue
import sys
import threading
import traceback

from moejax import config_io, files, host


def main(argv):
  train_path, *cpus = argv
  if cpus and hasattr(os, 'sched_setaffinity'):
    # Before jax is imported: it sizes its thread pools by this.
    os.sched_setaffinity(0, [int(cpu) for cpu in cpus])
  faulthandler.enable()  # a crash in compiled code leaves its stack in the log
  answers = os.fdopen(os.dup(1), 'w')
  cells = queue.SimpleQueue()
  threading.Thread(target=_listen, args=(cells,), daemon=True).start()
  while True:
    answer = _run(train_path, pathlib.Path(cells.get()))
    print(json.dumps(answer), file=answers, flush=True)


def _listen(cells):
  for line in sys.stdin:
    cells.put(json.loads(line))
  os._exit(0)


def _run(train_path, folder):
  _log_to(folder / 'log.txt')
  _reset_peak_memory()
  try:
    config = config_io.from_json((folder / 'config.json').read_text())
    returned = _function(train_path)(config, str(folder))
    if not isinstance(returned, dict):
      raise TypeError(
        f'{train_path} returned a {type(returned).__name__}; it must return '
        'a dict of results.'
      )
    cell = json.loads((folder / 'cell.json').read_text())
    head = {'name': cell['name'], 'status': 'ok'}
    head['overrides'] = cell['overrides']
    row = {**head, **returned, **head}  # first in order, and not overwritten
    files.write_atomic(
      folder / 'result.json', files.dumps(row, indent=2) + '\n'
    )
    return {'status': 'ok'}
  except BaseException as error:  # also SystemExit and KeyboardInterrupt
    files.write_atomic(folder / 'error.txt', traceback.format_exc())
    line = ' '.join(f'{type(error).__name__}: {error}'.split())
    return {'status': 'failed', 'error': line}
  finally:
    _free()


def _function(path):
  module, name = path.rsplit('.', 1)
  return getattr(importlib.import_module(module), name)


def _log_to(path):
  """Sends what the cell prints, also from C++, to its own log."""
  sys.stdout.flush()
  sys.stderr.flush()
  log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
  os.dup2(log, 1)
  os.dup2(log, 2)
  os.close(log)


def _reset_peak_memory():
  """Starts the process's peak (VmHWM) anew, so that each cell has its own."""
  try:
    with open('/proc/self/clear_refs', 'w') as file:
      file.write('5')
  except OSError:
    pass  # not Linux: the peak is then that of all cells so far


def _free():
  """Drops compiled programs and arrays, which would pile up over cells."""
  jax = sys.modules.get('jax')
  if jax is not None:
    jax.clear_caches()
  gc.collect()
  host.return_freed_memory()


if __name__ == '__main__':
  main(sys.argv[1:])
