"""Checks of a whole config before anything heavy starts.

Each finding is one sentence that names field, value, rule and fix. `fields`
holds the checks that need nothing but the config; here stand those that need
the parts built, the devices or the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from moejax import accounting, adapt, fields, sharding, stats
from moejax.parts import Parts
from moejax.state import blank_context


def check(config: ConfigDict) -> None:
  """Raises on the first thing in `config` that cannot work.

  Builds the parts and traces the model on abstract values; nothing is
  compiled or trained.

  Raises:
    ValueError: (or ConfigError) naming field, value, rule and fix.
  """
  fields.check(config)
  parts = Parts(config)
  check_program(config, parts)
  if parts.adaptive is not None:
    for other in adapt.variants(parts).values():
      check_terms(other.config, other)
  check_learning_rate(parts)
  check_data(config, parts)


def check_program(config: ConfigDict, parts: Parts) -> None:
  """What the program of a step depends on: the mesh, the batch, the terms."""
  check_batch(config, parts)
  check_time(config, parts)
  check_pipeline(config, parts)
  check_shardings(config, parts)
  check_terms(config, parts)


def check_shardings(config: ConfigDict, parts: Parts) -> None:
  """Every axis of a parameter has a rule, and divides over its devices."""
  sizes = sharding.mesh_sizes(config.mesh, parts.device_count)
  targets = [to for _, to in parts.rules if to is not None]
  used = {a for to in targets for a in ((to,) if isinstance(to, str) else to)}
  for axis, size in sizes.items():
    if size > 1 and axis not in used:
      raise ValueError(
        f'config.mesh.{axis}={size}, but no rule of config.rules uses '
        f'{axis!r}: its devices would all do the same; add a rule, or set it '
        'to 1.'
      )
  known = {name for name, _ in parts.rules}
  for row in accounting.parameter_rows(parts.model, parts.variables):
    for name in row.logical_axes:
      if name is not None and name not in known:
        raise ValueError(
          f'parameter {row.path} has the axis {name!r}, for which '
          f'config.rules has no rule; add ({name!r}, None), or a mesh axis '
          'for None.'
        )
    rules = sharding.rules_of(row.logical_axes, parts.rules)
    spec = sharding.spec(row.logical_axes, rules, sizes)
    for name, size, axes in zip(row.logical_axes, row.shape, spec, strict=True):
      count = math.prod(sizes[axis] for axis in axes)
      if size % count:
        raise ValueError(
          f'axis {name!r} of parameter {row.path} is {size}, which is not '
          f'divisible by the {count} devices of config.mesh '
          f'{" x ".join(axes)}; choose a divisor, or change its rule.'
        )


def check_batch(config: ConfigDict, parts: Parts) -> None:
  sizes = sharding.mesh_sizes(config.mesh, parts.device_count)
  for path, node in fields.nodes(config.model, 'config.model'):
    fields.check_moe(path, node, sizes)
  shards = sharding.shards(sizes, parts.rules)
  unit = shards * config.train.accumulate
  if config.train.batch_size % unit:
    raise ValueError(
      f'config.train.batch_size={config.train.batch_size} is not divisible by '
      f'{unit} ({shards} shards of the batch x accumulate='
      f'{config.train.accumulate}); use a multiple of {unit}.'
    )


def check_time(config: ConfigDict, parts: Parts) -> None:
  sizes = sharding.mesh_sizes(config.mesh, parts.device_count)
  shards = sharding.shards(sizes, parts.rules, 'time')
  if config.train.seq_len % shards:
    raise ValueError(
      f'config.train.seq_len={config.train.seq_len} is not divisible by the '
      f'{shards} devices that share a sequence; use a multiple of {shards}.'
    )
  # Machines that are not here have no processes.
  if parts.devices is None and jax.local_device_count() % shards:
    raise ValueError(
      f'{shards} devices share a sequence, but a process has '
      f'{jax.local_device_count()}, and reads whole rows; use a divisor of '
      f'that.'
    )


def check_pipeline(config: ConfigDict, parts: Parts) -> None:
  """Stages against layers and devices, micro-batches against rows."""
  sizes = sharding.mesh_sizes(config.mesh, parts.device_count)
  pipeline = parts.model.pipeline
  if pipeline is None:
    if sizes.get('pipe', 1) > 1:
      raise ValueError(
        f'config.mesh.pipe={sizes["pipe"]}, but config.model.pipeline is None: '
        'its devices would be stages of nothing; set it, as '
        'configs.common.pipeline does, or config.mesh.pipe=1.'
      )
    return
  (axes,) = sharding.spec(('layers',), parts.rules, sizes)
  devices = math.prod(sizes[axis] for axis in axes)
  pipeline.check(parts.model.repeats)
  pipeline.check_devices(devices)
  within = {axis: size for axis, size in sizes.items() if axis not in axes}
  shards = sharding.shards(within, parts.rules)
  train = config.train
  unit = train.accumulate * pipeline.microbatches * shards
  if train.batch_size % unit:
    raise ValueError(
      f'config.train.batch_size={train.batch_size} is not divisible by {unit} '
      f'({pipeline.microbatches} microbatches of config.model.pipeline x '
      f'{shards} shards of each x accumulate={train.accumulate}); use a '
      f'multiple of {unit}.'
    )


def check_terms(config: ConfigDict, parts: Parts) -> None:
  """The balance terms of the model against their weights."""
  shapes = jax.eval_shape(parts.model.init, jax.random.key(0), blank_context())
  check_weights(config.losses, set(stats.names(shapes.get('losses', {}))))


def check_weights(weights: Mapping[str, float], terms: set[str]) -> None:
  for name, weight in weights.items():
    if name not in terms:
      raise ValueError(
        f'config.losses.{name}={weight} weighs a term that no layer makes; '
        f'remove it, the model makes: {", ".join(sorted(terms)) or "none"}.'
      )
    if not math.isfinite(weight):
      raise ValueError(
        f'config.losses.{name}={weight} is not finite; give a number.'
      )
  for name in sorted(terms - set(weights)):
    raise ValueError(
      f'config.losses has no weight for the balance term {name!r}; add '
      f'config.losses.{name}, 0.0 to log it only.'
    )


def check_learning_rate(parts: Parts) -> None:
  steps = parts.steps
  try:
    rates = {
      step: float(parts.learning_rate(step))
      for step in sorted({0, min(1, steps - 1), steps // 2, steps - 1})
    }
  except ValueError as error:
    raise ValueError(f'config.optim.schedule: {error}') from error
  for step, rate in rates.items():
    if not (math.isfinite(rate) and rate >= 0):
      raise ValueError(
        f'config.optim gives learning rate {rate} at step {step}; it must be '
        'finite and not negative, so correct the peak of the schedule.'
      )


def check_data(config: ConfigDict, parts: Parts) -> None:
  vocab = parts.data.vocab
  if vocab > config.model.vocab:
    raise ValueError(
      f'config.model.vocab={config.model.vocab} is smaller than the {vocab} '
      f'ids of the tokenizer; raise it to at least {vocab}.'
    )
  try:
    for split in ('train', 'validation'):
      parts.batches(split, epochs=1)
  except ValueError as error:
    raise ValueError(f'config.data: {error}') from error
