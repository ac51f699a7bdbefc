"""The training loop: everything around the pure step."""

from __future__ import annotations

import pathlib
import signal
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from moejax import (
  accounting,
  adapt,
  config_io,
  files,
  generate,
  host,
  metrics,
  run_folder,
  sharding,
  validate,
)
from moejax.checkpoint import Checkpoints
from moejax.data import check_tokens
from moejax.evaluate import Evaluator
from moejax.parts import Parts


class Diverged(RuntimeError):
  """Too many steps in a row had a loss or gradient that is not finite."""


class Interrupted(KeyboardInterrupt):
  """The run was asked to end; its last checkpoint is on disk."""


def run(
  config: ConfigDict, workdir: str, sample: bool = False
) -> dict[str, Any]:
  """Trains to the last step, from the newest checkpoint if there is one.

  Writes `config.json`, `metrics.jsonl`, TensorBoard events and checkpoints
  into `workdir`.

  Args:
    config: the whole config.
    workdir: a local folder.
    sample: whether to end with a continuation of `config.infer.prompt`.

  Returns:
    The result: final losses (nats per token), sizes, FLOPs, speed, what it
    ran on, and the sample if there is one.

  Raises:
    ValueError: for a config that cannot run, or a workdir of another one.
    Diverged: if training does not recover.
    Interrupted: on SIGTERM, after saving.
  """
  folder = files.folder(workdir)
  run_folder.check(config, folder)
  validate.check(config)
  if jax.process_index() == 0:
    run_folder.claim(config, folder)
  return Run(config, folder).go(sample)


class Run:
  """One run: its parts, and the loop over them."""

  def __init__(self, config: ConfigDict, folder: pathlib.Path):
    self.config = config
    self.folder = folder
    self.parts = parts = Parts(config)
    self.evaluator = Evaluator(parts)
    self.data = parts.batches('train', epochs=None)
    self.costs = accounting.describe(
      parts.model, config.train.seq_len, parts.variables
    )

  def go(self, sample: bool = False) -> dict[str, Any]:
    """Trains, evaluates, perhaps samples, and returns the result."""
    saving = self.config.checkpoint
    # Outside of the mesh: the peak is measured on one device.
    meter = Meter(self.parts, self.costs)
    with (
      sharding.use(self.parts.mesh, self.parts.rules),
      Checkpoints(
        self.folder / 'checkpoints',
        every_steps=saving.every_steps,
        keep=saving.keep,
      ) as checkpoints,
      metrics.Writer(self.folder, self.config.log.tensorboard) as writer,
      _Termination() as termination,
    ):
      now, first = self._start(checkpoints, writer)
      meter.pause()
      now = self._loop(now, first, checkpoints, writer, termination, meter)
      result = self._result(now, meter)
      if sample:
        result['sample'] = generate.sample(self.parts, now.variables)
      return result

  def _start(self, checkpoints, writer):
    found = checkpoints.restore(self.parts.abstract_state, self.data)
    now, first = found or (self.parts.new_state(), 0)
    writer.rewind(first)
    if jax.process_index() == 0:
      if first:
        print(f'going on from step {first} in {self.folder}', flush=True)
      else:
        rows = accounting.parameter_rows(self.parts.model, self.parts.variables)
        print(metrics.parameter_table(rows), flush=True)
        costs = accounting.table(
          self.parts.model, self.config.train.seq_len, self.parts.variables
        )
        print(costs, flush=True)
    return now, first

  def _loop(self, now, first, checkpoints, writer, termination, meter):
    config, total = self.config, self.parts.steps
    step_fn = None
    with metrics.Progress(total, start_step=first) as progress:
      for index in range(first + 1, total + 1):
        rows = next(self.data)
        check_tokens(rows, self.parts.model.vocab)
        batch = sharding.put_batch(rows, self.parts.batch_sharding)
        step_fn = step_fn or self._compiled(now, batch)
        now, values = step_fn(now, batch)
        logged = index % config.log.every_steps == 0 or index in (1, total)
        # The first step after a start compiles: it only sets the clock.
        if logged or index == first + 1:
          row = meter.read(index, values)
          self._check_divergence(index, row)
        if logged:
          if self._evaluates(index):
            row |= self._evaluate(now, 'validation')
            meter.pause()
          writer.write(index, row)
          progress.update(
            index, loss=row['loss'], tokens_per_s=row['tokens_per_s']
          )
        asked = termination.asked(checkpoints, index)
        last = index == total and config.checkpoint.every_steps is not None
        checkpoints.save(index, now, self.data, force=asked or last)
        if asked:
          checkpoints.wait()
          raise Interrupted(
            f'stopped at step {index} of {total}; run again to go on.'
          )
    return now

  def _compiled(self, now, batch):
    if self.parts.adaptive is not None:
      return adapt.Steps(self.parts)
    compiled = self.parts.train_step.lower(now, batch).compile()
    # What the compiler took would otherwise add to the peak of the steps.
    host.return_freed_memory()
    return compiled

  def _evaluates(self, index):
    every = self.config.evaluate.every_steps
    return every is not None and index % every == 0

  def _evaluate(self, now, split):
    batches = self.config.evaluate.batches
    return self.evaluator(now.variables, split, batches)

  def _check_divergence(self, index, row):
    limit = self.config.train.max_skipped_steps
    if row['skipped_in_a_row'] >= limit:
      raise Diverged(
        f'the last {row["skipped_in_a_row"]:.0f} steps before step {index} had '
        'a loss or gradient that is not finite and were skipped '
        f'(config.train.max_skipped_steps={limit}); lower the learning rate, '
        'or go on from an earlier checkpoint with other data.'
      )

  def _result(self, now, meter):
    train = self.config.train
    steps = self.parts.steps
    tokens = steps * train.batch_size * train.seq_len
    found = {}
    for split in ('validation', *self.config.evaluate.splits):
      found |= self._evaluate(now, split)
    return {
      'loss': found.pop('validation/loss'),
      'loss_train': meter.loss,
      'seed': self.config.seed,
      'steps': steps,
      'tokens': tokens,
      'train_flops': tokens * self.costs['flops_per_token'],
      **self.costs,
      'validation_tokens': found.pop('validation/tokens'),
      **found,
      'skipped_steps': int(now.opt_state.skipped),
      'seconds': meter.seconds,
      'tokens_per_s': meter.tokens_per_s,
      'peak_memory_bytes': metrics.peak_memory_bytes(),
      'data_digest': self.parts.data.digest(),
      'labels': config_io.plain(self.config.labels),
      'environment': metrics.environment(),
    }


class Meter:
  """Speed, and the logged form of a step's values."""

  def __init__(self, parts: Parts, costs):
    self.parts = parts
    self.flops_per_token = costs['flops_per_token']
    train = parts.config.train
    self.step_tokens = train.batch_size * train.seq_len
    peak, self.peak_source = metrics.device_peak_flops(
      jax.devices()[0], jnp.dtype(parts.model.dtype)
    )
    on_cpu = jax.devices()[0].platform == 'cpu'
    # All devices of a CPU share its cores, and so its peak.
    self.peak_flops = peak * (1 if on_cpu else jax.device_count())
    self.loss = float('nan')
    self.seconds = 0.0
    self.tokens_per_s = 0.0
    self._read_at = None
    self._steps_timed = 0
    self._since_s = time.monotonic()

  def read(self, index: int, values) -> dict[str, Any]:
    """Waits for the step, and returns its row of the log.

    tokens_per_s counts places of the batch, padding included, since the last
    row; the first row includes compilation and is not counted further.
    """
    row = {
      name: np.asarray(value).tolist()
      for name, value in jax.device_get(values).items()
    }
    now_s = time.monotonic()
    steps = index - (index - 1 if self._read_at is None else self._read_at)
    seconds = now_s - self._since_s
    speed = steps * self.step_tokens / seconds
    if self._read_at is not None:
      self.seconds += seconds
      self._steps_timed += steps
      self.tokens_per_s = self._steps_timed * self.step_tokens / self.seconds
    self._read_at, self._since_s = index, now_s
    self.loss = row['loss']
    flops_per_s = speed * self.flops_per_token
    return row | {
      'learning_rate': float(
        self.parts.learning_rate(index - 1 - row['skipped_steps'])
      ),
      'tokens_per_s': speed,
      'flops_per_s': flops_per_s,
      'train_flops': index * self.step_tokens * self.flops_per_token,
      'mfu': flops_per_s / self.peak_flops,
      'fill_frac': row['tokens'] / self.step_tokens,
    }

  def pause(self) -> None:
    """Leaves what was done since the last row out of the speed."""
    self._since_s = time.monotonic()


class _Termination:
  """Notes SIGTERM, for the loop to end after the step that it is in."""

  def __enter__(self):
    self._noted, self._before = False, None
    main = threading.current_thread() is threading.main_thread()
    # Several processes must stop at one step: jax.distributed sees to that.
    if main and jax.process_count() == 1:
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *error):
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, signum, frame):
    self._noted = True

  def asked(self, checkpoints: Checkpoints, step: int) -> bool:
    """Whether the run is to end after `step`; alike on every process."""
    return self._noted or checkpoints.preempted(step)
