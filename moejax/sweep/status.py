"""How far a sweep is: one live line on a terminal, plain lines elsewhere."""

import time

from rich import console as rich_console
from rich import progress as rich_progress

from moejax.clock import duration


class Status:
  """Counts finished cells and estimates the time left.

  The estimate weighs cells by their cost where all have one.
  """

  def __init__(self, costs, log):
    weighed = all(cost is not None and cost > 0 for cost in costs)
    self._weight = (lambda cost: cost) if weighed else (lambda cost: 1)
    self._work = sum(map(self._weight, costs))
    self._done_work = 0.0
    self._total, self._done, self._failed = len(costs), 0, 0
    self._start_s = time.monotonic()
    self._log = log
    self._bar = None

  def __enter__(self):
    console = rich_console.Console()
    if console.is_terminal:
      self._bar = rich_progress.Progress(
        rich_progress.TextColumn('{task.description}'),
        rich_progress.BarColumn(),
        console=console,
      )
      self._task = self._bar.add_task('', total=self._work)
      self._bar.start()
      self.refresh(0)
    return self

  def __exit__(self, *error):
    if self._bar is not None:
      self._bar.stop()

  def finish(self, row, cost, wall_s):
    """Counts a cell that ended after `wall_s`, well or not."""
    failed = row['status'] == 'failed'
    self._done += 1
    self._failed += failed
    self._done_work += self._weight(cost)
    if failed or self._bar is None:
      end = f'failed: {row["error"]}' if failed else 'ok'
      self._log(
        f'[{self._done}/{self._total}] {row["name"]} {end} '
        f'({duration(wall_s)}), {self._left()}'
      )

  def refresh(self, running):
    """Redraws the live line, if there is one."""
    if self._bar is not None:
      text = (
        f'{self._done}/{self._total} cells, {self._failed} failed, '
        f'{running} running, {self._left()}'
      )
      self._bar.update(self._task, description=text, completed=self._done_work)

  def _left(self):
    if not self._done_work:
      return 'time left unknown'
    elapsed_s = time.monotonic() - self._start_s
    left_s = elapsed_s * (self._work / self._done_work - 1)
    return f'{duration(left_s)} left'
