"""Worker processes that live for many cells and are replaced when they die."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time

from moejax import host

_THREAD_VARIABLES = (
  'NPROC',  # XLA on CPU
  'OMP_NUM_THREADS',
  'OPENBLAS_NUM_THREADS',
  'MKL_NUM_THREADS',
)


class Pool:
  """`size` workers that call the function at import path `train`."""

  def __init__(self, train, size):
    self._train = train
    self._shares = cpu_shares(size)
    self._workers = [None] * size
    self._busy = set()
    self._selector = selectors.DefaultSelector()

  def has_idle(self):
    return len(self._busy) < len(self._workers)

  def start(self, folder):
    """Gives a cell's folder to an idle worker; the index of the worker."""
    index = min(set(range(len(self._workers))) - self._busy)
    worker = self._workers[index]
    if worker is None or worker.poll() is not None:
      self._drop(index)
      worker = self._workers[index] = self._spawn(index)
      self._selector.register(worker.stdout, selectors.EVENT_READ, index)
    self._busy.add(index)
    # If the worker died just now, `wait` meets its end and reports it.
    with contextlib.suppress(BrokenPipeError):
      worker.stdin.write(json.dumps(str(folder)) + '\n')
      worker.stdin.flush()
    return index

  def wait(self, timeout_s):
    """List of (worker, answer) of cells that ended, at most `timeout_s` late.

    An answer is {'status': 'ok'} or {'status': 'failed', 'error': one line}.
    """
    ready = {key.data for key, _ in self._selector.select(timeout_s)}
    for index in ready - self._busy:
      self._drop(index)  # it died idle; its closed pipe would always be ready
    # A dead worker's pipe stays open while a process that it forked lives.
    dead = {i for i in self._busy if self._workers[i].poll() is not None}
    return [(i, self._answer(i)) for i in sorted((ready | dead) & self._busy)]

  def _answer(self, index):
    worker = self._workers[index]
    self._busy.remove(index)
    if worker.poll() is None:
      line = worker.stdout.readline()
      if line.endswith('\n'):
        answer = json.loads(line)
        if answer['status'] == 'failed':
          self._drop(index)  # what it left in memory may harm the next cell
        return answer
    error = cause_of_death(worker.wait())
    self._drop(index)
    return {'status': 'failed', 'error': error}

  def stop(self, grace_s=30.0):
    """Ends all workers; a busy one has `grace_s` after SIGTERM to save.

    KeyboardInterrupt meanwhile ends them at once.
    """
    try:
      for index in self._busy:
        self._workers[index].terminate()
      deadline_s = time.monotonic() + grace_s
      # A worker that has saved reports its cell as ended and lives on.
      while self._busy and (left_s := deadline_s - time.monotonic()) > 0:
        self.wait(min(left_s, 1.0))
    finally:
      self._busy.clear()
      for index in range(len(self._workers)):
        self._drop(index)

  def _spawn(self, index):
    cpus = self._shares[index]
    # The worker imports what this process can, also from a notebook's path.
    paths = [path or os.getcwd() for path in sys.path]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
    env |= host.huge_pages()
    if cpus is not None:
      env |= dict.fromkeys(_THREAD_VARIABLES, str(len(cpus)))
    return subprocess.Popen(
      [sys.executable, '-m', 'moejax.sweep.worker', self._train]
      + [str(cpu) for cpu in cpus or ()],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=env,
      start_new_session=True,  # Ctrl-C is for the parent, which stops workers
    )

  def _drop(self, index):
    worker, self._workers[index] = self._workers[index], None
    if worker is None:
      return
    self._selector.unregister(worker.stdout)
    worker.kill()
    worker.wait()
    worker.stdout.close()
    with contextlib.suppress(BrokenPipeError):
      worker.stdin.close()


def cause_of_death(code):
  """In words, of the exit code of a process."""
  if code >= 0:
    return f'the process ended by itself with exit code {code}'
  name = signal.Signals(-code).name
  hint = ' (often: out of memory)' if name == 'SIGKILL' else ''
  return f'the process was killed by {name}{hint}'


def cpu_shares(size):
  """The CPUs of each of `size` workers; None where one worker has them all."""
  if size == 1:
    return [None]
  if hasattr(os, 'sched_getaffinity'):
    cpus = sorted(os.sched_getaffinity(0))
  else:
    cpus = list(range(os.cpu_count() or 1))
  if size >= len(cpus):
    return [[cpus[i % len(cpus)]] for i in range(size)]
  bounds = [i * len(cpus) // size for i in range(size + 1)]
  return [cpus[bounds[i] : bounds[i + 1]] for i in range(size)]
