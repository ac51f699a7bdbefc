"""Checks of a config's fields that need no device, no data and no model.

Each finding is one sentence that names field, value, rule and fix. What a
single class can check of itself is checked there; here stand the sections and
what joins fields of different nodes. Nothing here imports jax.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from moejax.nearest import nearest

NODE, FREE = 'node', 'free'
# The sections of a config: a node, free names, or these fields.
SECTIONS = {
  'checkpoint': ('every_steps', 'keep'),
  'data': NODE,
  'evaluate': ('every_steps', 'batches', 'splits'),
  'infer': ('prompt', 'max_tokens', 'seed', 'sampler', 'overlay'),
  'labels': FREE,
  'log': ('every_steps', 'tensorboard'),
  'loss': NODE,
  'losses': FREE,
  'mesh': FREE,
  'model': NODE,
  'optim': NODE,
  'rules': FREE,
  'seed': FREE,
  'sweep': ('jobs', 'report', 'plan'),
  'train': (
    'steps',
    'budget_flops',
    'batch_size',
    'seq_len',
    'accumulate',
    'adapt',
    'bias_update',
    'max_skipped_steps',
  ),
}
DTYPES = ('float32', 'bfloat16')


def check(config: ConfigDict) -> None:
  """Raises on the first field of `config` that cannot work.

  Raises:
    ValueError: naming field, value, rule and fix.
  """
  check_sections(config)
  check_counts(config)
  check_length(config)
  check_model(config.model)
  for path, node in nodes(config.model, 'config.model'):
    if 'hidden' in node:
      at_least(f'{path}.hidden', node['hidden'], 1)
    check_attention(path, node)
    check_moe(path, node, config.mesh)


def check_sections(config: ConfigDict) -> None:
  _same_names('config', config, SECTIONS)
  for name, kind in SECTIONS.items():
    section = config[name]
    if kind == NODE and not (hasattr(section, 'keys') and 'kind' in section):
      raise ValueError(
        f'config.{name} has no kind; give a node, such as configs.common makes.'
      )
    if kind not in (NODE, FREE):
      _same_names(f'config.{name}', section, kind)


def check_counts(config: ConfigDict) -> None:
  train, infer = config.train, config.infer
  at_least('config.seed', config.seed, 0)
  for name in ('batch_size', 'seq_len', 'accumulate', 'max_skipped_steps'):
    at_least(f'config.train.{name}', train[name], 1)
  at_least('config.log.every_steps', config.log.every_steps, 1)
  at_least('config.sweep.jobs', config.sweep.jobs, 1)
  at_least('config.infer.max_tokens', infer.max_tokens, 1)
  at_least('config.infer.seed', infer.seed, 0)
  for section, name in (
    ('checkpoint', 'every_steps'),
    ('checkpoint', 'keep'),
    ('evaluate', 'every_steps'),
    ('evaluate', 'batches'),
  ):
    if config[section][name] is not None:
      at_least(f'config.{section}.{name}', config[section][name], 1)
  for split in config.evaluate.splits:
    if split not in ('train', 'test'):
      raise ValueError(
        f'config.evaluate.splits={config.evaluate.splits} must hold train or '
        f'test, not {split!r}; validation is evaluated anyway.'
      )
  every = config.evaluate.every_steps
  if every is not None and every % config.log.every_steps:
    raise ValueError(
      f'config.evaluate.every_steps={every} is no multiple of '
      f'config.log.every_steps={config.log.every_steps}; evaluation is logged '
      'with a step that is logged, so make it one.'
    )


def check_length(config: ConfigDict) -> None:
  steps, flops = config.train.steps, config.train.budget_flops
  if (steps is None) == (flops is None):
    raise ValueError(
      f'config.train.steps={steps} and config.train.budget_flops={flops}: one '
      'of them says how long to train, so set the other to None.'
    )
  if steps is not None:
    at_least('config.train.steps', steps, 1)
  elif not _is_number(flops) or not 0 < flops < math.inf:
    raise ValueError(
      f'config.train.budget_flops={flops!r} must be a positive number of '
      'FLOPs, such as 1e12.'
    )


def check_model(model: Mapping) -> None:
  if model['kind'] != 'model.Model':
    return
  blocks = model.get('blocks', {})
  for group in ('prefix', 'pattern', 'suffix'):
    for name in model.get(group, ()):
      if name not in blocks:
        raise ValueError(
          f'config.model.{group} names {name!r}, which is no block; '
          f'{nearest(name, blocks)}.'
        )
  if not model.get('pattern', ()):
    raise ValueError(
      'config.model.pattern=() is empty; name at least one block to repeat.'
    )
  for name in ('vocab', 'width', 'repeats'):
    at_least(f'config.model.{name}', model.get(name, 1), 1)
  dtype = model.get('dtype', DTYPES[0])
  if dtype not in DTYPES:
    raise ValueError(
      f'config.model.dtype={dtype!r} is unknown; use {" or ".join(DTYPES)}.'
    )


def check_attention(path: str, node: Mapping) -> None:
  heads, kv_heads = node.get('heads'), node.get('kv_heads')
  if heads is None or kv_heads is None:
    return
  at_least(f'{path}.heads', heads, 1)
  at_least(f'{path}.kv_heads', kv_heads, 1)
  if heads % kv_heads:
    raise ValueError(
      f'{path}.kv_heads={kv_heads} does not divide heads={heads}; choose a '
      'divisor.'
    )


def check_moe(path: str, node: Mapping, mesh: Mapping[str, int]) -> None:
  if node['kind'] != 'moe.Moe':
    return
  router, where = node.get('router') or {}, f'{path}.router'
  while 'inner' in router:  # a wrapper
    router, where = router['inner'] or {}, f'{where}.inner'
  num_experts = (node.get('experts') or {}).get('num_experts', 1)
  at_least(f'{path}.experts.num_experts', num_experts, 1)
  k = router.get('k')
  if k is not None:
    at_least(f'{where}.k', k, 1)
    if k > num_experts:
      raise ValueError(
        f'{where}.k={k} is more than experts.num_experts={num_experts}; '
        'a token goes to different experts, so lower k or add experts.'
      )
  scored = (router.get('score') or {}).get('num_experts', num_experts)
  if scored != num_experts:
    raise ValueError(
      f'{where}.score.num_experts={scored} differs from '
      f'experts.num_experts={num_experts}; set both to the same number.'
    )
  axis = mesh.get('expert', 1)
  if axis > 0 and num_experts % axis:
    raise ValueError(
      f'{path}.experts.num_experts={num_experts} is not divisible by '
      f'config.mesh.expert={axis}; choose a multiple of it, or a smaller axis.'
    )


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


def at_least(name: str, value, least: int) -> None:
  """Raises unless `value` is a whole number of at least `least`."""
  if isinstance(value, bool) or not isinstance(value, int) or value < least:
    raise ValueError(
      f'{name}={value!r} must be a whole number of at least {least}; correct '
      'it.'
    )


def _same_names(path, section, known):
  for name in section:
    if name not in known:
      raise ValueError(
        f'{path}.{name}={section[name]!r} is no field of {path}; '
        f'{nearest(name, known)}.'
      )
  for name in known:
    if name not in section:
      raise ValueError(
        f'{path}.{name} is missing; start from configs.common.base().'
      )


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)
