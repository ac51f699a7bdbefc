"""Cells as tasks of a Ray cluster; what `pool` does on one machine.

The folder of the sweep must be at one path on all nodes. A task whose node is
lost runs again on another, where the cell goes on from its checkpoint.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import select
import subprocess
import sys
from typing import Any

from moejax.sweep.pool import cause_of_death

RETRIES = 10  # of a cell, each after the loss of its node
GRACE_S = 30.0


def check_installed() -> None:
  """Raises a ValueError, which says what to install, where there is no Ray."""
  if importlib.util.find_spec('ray') is None:
    raise ValueError(
      '--launcher=ray needs ray, which is not installed; install it on every '
      "node: pip install -e '.[ray]'."
    )


class Cluster:
  """`size` cells at once, each a task that calls the function `train`.

  It joins the cluster that RAY_ADDRESS names or this machine belongs to; where
  there is none, Ray starts one of this machine alone. A cell takes a CPU, and
  where nodes have them a GPU, or all TPU chips of a node.
  """

  def __init__(self, train: str, size: int):
    check_installed()
    import ray

    self._ray, self._train, self._size = ray, train, size
    self._own = not ray.is_initialized()
    if self._own:
      ray.init(log_to_driver=False, logging_level='error')
    # Nodes import what this process can.
    paths = [path or os.getcwd() for path in sys.path]
    env = {'PYTHONPATH': os.pathsep.join(paths)}
    self._task = ray.remote(train_cell).options(
      max_retries=RETRIES,
      scheduling_strategy='SPREAD',
      runtime_env={'env_vars': env},
      **needs(ray.nodes()),
    )
    self._busy = {}  # index: reference of the task

  def has_idle(self) -> bool:
    return len(self._busy) < self._size

  def start(self, folder: pathlib.Path) -> int:
    """Hands in a cell's folder; its place among those at work."""
    index = min(set(range(self._size)) - set(self._busy))
    self._busy[index] = self._task.remote(
      self._train, str(pathlib.Path(folder).resolve())
    )
    return index

  def wait(self, timeout_s: float) -> list[tuple[int, dict[str, str]]]:
    """See `pool.Pool.wait`."""
    ready, _ = self._ray.wait(list(self._busy.values()), timeout=timeout_s)
    ended = [i for i, task in self._busy.items() if task in ready]
    return [(i, self._answer(self._busy.pop(i))) for i in ended]

  def _answer(self, task):
    try:
      return self._ray.get(task)
    except self._ray.exceptions.RayError as error:
      line = ' '.join(str(error).split())[:300]
      return {'status': 'failed', 'error': f'{type(error).__name__}: {line}'}

  def stop(self, grace_s: float = GRACE_S) -> None:
    """Ends all tasks; cells have `grace_s` to save."""
    try:
      tasks = list(self._busy.values())
      for task in tasks:
        self._ray.cancel(task)
      if tasks:
        self._ray.wait(tasks, num_returns=len(tasks), timeout=grace_s)
    finally:
      self._busy.clear()
      if self._own:
        self._ray.shutdown()


def needs(nodes: list[dict[str, Any]]) -> dict[str, Any]:
  """What a cell takes of a node, by what the nodes of a cluster have."""
  found = [node['Resources'] for node in nodes if node['Alive']]
  chips = [have['TPU'] for have in found if have.get('TPU')]
  taken = {'num_cpus': 1}
  if any(have.get('GPU') for have in found):
    taken['num_gpus'] = 1
  elif chips:
    taken['resources'] = {'TPU': min(chips)}
  return taken


def train_cell(train: str, folder: str) -> dict[str, str]:
  """Trains one cell in a process of its own, on the node that this runs on."""
  worker = subprocess.Popen(
    [sys.executable, '-m', 'moejax.sweep.worker', train],
    stdin=subprocess.PIPE,  # it ends when this closes, as when the node is lost
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    worker.stdin.write(json.dumps(folder) + '\n')
    worker.stdin.flush()
    # A wait without an end would not be interrupted by a cancellation.
    while not select.select([worker.stdout], [], [], 1.0)[0]:
      pass
    line = worker.stdout.readline()
    if line.endswith('\n'):
      return json.loads(line)
    return {'status': 'failed', 'error': cause_of_death(worker.wait())}
  except KeyboardInterrupt:
    worker.terminate()  # it saves and answers
    select.select([worker.stdout], [], [], GRACE_S)
    raise
  finally:
    worker.kill()
    worker.wait()
