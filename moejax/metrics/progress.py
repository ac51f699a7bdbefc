"""How far a training run is: a bar on a terminal, plain lines elsewhere."""

import sys
import time

import jax
from rich import console as rich_console
from rich import progress as rich_progress

from moejax.clock import duration


class Progress:
  """Shows step, loss, speed and the time left.

  Processes other than 0 show nothing.

  Args:
    total_steps: the step at which the run ends.
    start_step: the step it starts from, larger than 0 on resume.
    stream: where to write; None is standard output.
  """

  def __init__(self, total_steps, *, start_step=0, stream=None):
    self._active = jax.process_index() == 0
    self._total_steps = total_steps
    self._first = (start_step, time.monotonic())
    self._stream = stream
    self._bar = None
    self._updates = 0

  def __enter__(self):
    console = rich_console.Console(file=self._stream)
    if self._active and console.is_terminal:
      self._bar = rich_progress.Progress(
        rich_progress.BarColumn(),
        rich_progress.TextColumn('{task.description}'),
        console=console,
      )
      step, _ = self._first
      self._task = self._bar.add_task('', total=self._total_steps)
      self._bar.update(self._task, completed=step)
      self._bar.start()
    return self

  def __exit__(self, *error):
    if self._bar is not None:
      self._bar.stop()

  def update(self, step, *, loss=None, tokens_per_s=None):
    """Shows a logged step, in one line 'step 100/1000  loss 3.21  ...'."""
    if not self._active:
      return
    parts = [f'step {step}/{self._total_steps}']
    if loss is not None:
      parts.append(f'loss {float(loss):.4g}')
    if tokens_per_s is not None:
      parts.append(f'{float(tokens_per_s):,.0f} tokens/s')
    parts.append(self._left(step))
    line = '  '.join(part for part in parts if part)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, description=line)
    else:
      print(line, file=self._stream or sys.stdout, flush=True)

  def _left(self, step):
    now_s = time.monotonic()
    first_step, first_s = self._first
    if step <= first_step:
      return ''
    left_s = (
      (self._total_steps - step) * (now_s - first_s) / (step - first_step)
    )
    self._updates += 1
    if self._updates == 1:
      # The first interval holds the compilation: measure from its end.
      self._first = (step, now_s)
    return f'{duration(left_s)} left'
