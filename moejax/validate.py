"""Checks of a whole config before anything heavy starts.

Each finding is one sentence that names field, value, rule and fix. What a
single class can check of itself is checked there; here stands what joins
fields of different parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import jax
from ml_collections import ConfigDict

from moejax import sharding, stats
from moejax.build import ConfigError
from moejax.parts import Parts
from moejax.state import blank_context

SECTIONS = (
  'checkpoint',
  'data',
  'evaluate',
  'infer',
  'labels',
  'log',
  'loss',
  'losses',
  'mesh',
  'model',
  'optim',
  'rules',
  'seed',
  'sweep',
  'train',
)


def check(config: ConfigDict) -> None:
  """Raises on the first thing in `config` that cannot work.

  Builds the parts and traces the model on abstract values; nothing is
  computed on an accelerator.

  Raises:
    ValueError: (or ConfigError) naming field, value, rule and fix.
  """
  check_static(config)
  parts = Parts(config)
  check_model(config, parts)
  check_batch(config, parts)
  check_learning_rate(config, parts)
  check_data(config, parts)


def check_static(config: ConfigDict) -> None:
  """The checks that need no device, no data and no model.

  Raises:
    ValueError: naming field, value, rule and fix.
  """
  check_sections(config)
  check_train(config)
  for path, node in nodes(config.model, 'config.model'):
    check_attention(path, node)
    check_moe(path, node, config.mesh)


def check_sections(config: ConfigDict) -> None:
  missing = [name for name in SECTIONS if name not in config]
  if missing:
    raise ConfigError(
      f'config lacks {", ".join(missing)}; start from configs.common.base().'
    )


def check_train(config: ConfigDict) -> None:
  train = config.train
  for name in ('batch_size', 'seq_len', 'accumulate'):
    _at_least(f'config.train.{name}', train[name], 1)
  if (train.steps is None) == (train.budget_flops is None):
    raise ValueError(
      f'config.train.steps={train.steps} and config.train.budget_flops='
      f'{train.budget_flops}: one of them says how long to train, so set the '
      'other to None.'
    )
  if train.steps is not None:
    _at_least('config.train.steps', train.steps, 1)
  elif not 0 < train.budget_flops < math.inf:
    raise ValueError(
      f'config.train.budget_flops={train.budget_flops} must be a positive '
      'number of FLOPs, such as 1e12.'
    )
  _at_least('config.train.max_skipped_steps', config.train.max_skipped_steps, 1)
  _at_least('config.log.every_steps', config.log.every_steps, 1)
  for section in ('checkpoint', 'evaluate'):
    every = config[section].every_steps
    if every is not None:
      _at_least(f'config.{section}.every_steps', every, 1)
  every = config.evaluate.every_steps
  if every is not None and every % config.log.every_steps:
    raise ValueError(
      f'config.evaluate.every_steps={every} is no multiple of '
      f'config.log.every_steps={config.log.every_steps}; evaluation is logged '
      'with a step that is logged, so make it one.'
    )


def check_attention(path: str, node: Mapping) -> None:
  heads, kv_heads = node.get('heads'), node.get('kv_heads')
  if isinstance(heads, int) and isinstance(kv_heads, int):
    _at_least(f'{path}.kv_heads', kv_heads, 1)
    if heads % kv_heads:
      raise ValueError(
        f'{path}.kv_heads={kv_heads} does not divide heads={heads}; choose a '
        'divisor.'
      )


def check_moe(path: str, node: Mapping, mesh: Mapping) -> None:
  if node.get('kind') != 'moe.Moe':
    return
  num_experts = node['experts'].get('num_experts', 1)
  _at_least(f'{path}.experts.num_experts', num_experts, 1)
  router = node['router']
  k = router.get('k')
  if k is not None:
    _at_least(f'{path}.router.k', k, 1)
    if k > num_experts:
      raise ValueError(
        f'{path}.router.k={k} is more than experts.num_experts={num_experts}; '
        'a token goes to different experts, so lower k or add experts.'
      )
  scored = router.get('score', {}).get('num_experts', num_experts)
  if scored != num_experts:
    raise ValueError(
      f'{path}.router.score.num_experts={scored} differs from '
      f'experts.num_experts={num_experts}; set both to the same number.'
    )
  axis = mesh.get('expert', 1)
  if axis > 0 and num_experts % axis:
    raise ValueError(
      f'{path}.experts.num_experts={num_experts} is not divisible by '
      f'config.mesh.expert={axis}; choose a multiple of it, or a smaller axis.'
    )


def check_model(config: ConfigDict, parts: Parts) -> None:
  model = parts.model
  for group in ('prefix', 'pattern', 'suffix'):
    for name in getattr(model, group):
      if name not in model.blocks:
        raise ValueError(
          f'config.model.{group} names {name!r}, which is no block; known: '
          f'{", ".join(sorted(model.blocks))}.'
        )
  _at_least('config.model.repeats', model.repeats, 1)
  if not model.pattern:
    raise ValueError(
      'config.model.pattern is empty; name at least one block to repeat.'
    )
  written = _traced(model, 'losses')
  terms = set(stats.names(written))
  check_weights(config.losses, terms)


def check_weights(weights: Mapping[str, float], terms: set[str]) -> None:
  for name, weight in weights.items():
    if name not in terms:
      raise ValueError(
        f'config.losses.{name}={weight} weighs a term that no layer makes; '
        f'the model makes: {", ".join(sorted(terms)) or "none"}.'
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


def check_batch(config: ConfigDict, parts: Parts) -> None:
  sizes = sharding.mesh_sizes(config.mesh, jax.device_count())
  for path, node in nodes(config.model, 'config.model'):
    check_moe(path, node, sizes)
  shards = sharding.batch_shards(sizes, parts.rules)
  unit = shards * config.train.accumulate
  if config.train.batch_size % unit:
    raise ValueError(
      f'config.train.batch_size={config.train.batch_size} is not divisible by '
      f'{unit} ({shards} shards of the batch x accumulate='
      f'{config.train.accumulate}); use a multiple of {unit}.'
    )


def check_learning_rate(config: ConfigDict, parts: Parts) -> None:
  steps = parts.steps
  for step in sorted({0, 1, steps // 2, steps - 1}):
    rate = float(parts.learning_rate(step))
    if not (math.isfinite(rate) and rate >= 0):
      raise ValueError(
        f'config.optim gives learning rate {rate} at step {step}; it must be '
        'finite and not negative, so correct the peak of the schedule.'
      )


def check_data(config: ConfigDict, parts: Parts) -> None:
  if parts.data.vocab > config.model.vocab:
    raise ValueError(
      f'config.model.vocab={config.model.vocab} is smaller than the '
      f'{parts.data.vocab} ids of the tokenizer; raise it to at least '
      f'{parts.data.vocab}.'
    )
  for split in ('train', 'validation'):
    parts.batches(split, epochs=1)


def nodes(config, path: str) -> Iterator[tuple[str, Mapping]]:
  """Every node of a config tree with its path, outer ones first."""
  if isinstance(config, (tuple, list)):
    for i, value in enumerate(config):
      yield from nodes(value, f'{path}[{i}]')
  elif hasattr(config, 'items'):
    if 'kind' in config:
      yield path, config
    for name, value in config.items():
      yield from nodes(value, f'{path}.{name}')


def _traced(model, collection):
  """What the model would write into a collection, as shapes."""
  ctx = blank_context()
  return jax.eval_shape(model.init, jax.random.key(0), ctx).get(collection, {})


def _at_least(name, value, least):
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise ValueError(
      f'{name}={value!r} must be a whole number of at least {least}.'
    )
