"""Values that layers sow, and how they are gathered.

They are gathered by name, in the order of the layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.types import Assignment, Chosen, Context, Pairs

# Groups of layers in the order in which a token meets them.
ORDER = ('before', 'layers', 'after')


def sow_routing(
  module: nn.Module,
  assignment: Assignment,
  ctx: Context,
  balance: Mapping[str, Callable] | None,
  prefix: str = '',
) -> None:
  """Sows what a router chose: its balance terms and its health, raw.

  These are `losses/<name>` for each term, and `stats/<prefix>counts` [E] and
  `stats/<prefix>entropy` (nats, of the router's softmax).
  """
  for name, term in (balance or {}).items():
    module.sow('losses', name, term(assignment, ctx))
  if not isinstance(assignment, Chosen | Pairs):
    return
  log_prob = jax.nn.log_softmax(assignment.logits_NE)
  entropy_N = -(jnp.exp(log_prob) * log_prob).sum(-1)
  valid = jnp.maximum(ctx.valid_N.sum(), 1)
  entropy = jnp.where(ctx.valid_N, entropy_N, 0).sum() / valid
  module.sow('stats', f'{prefix}counts', assignment.counts_E())
  module.sow('stats', f'{prefix}entropy', entropy)


def by_name(sown: Mapping[str, Any]) -> dict[str, jax.Array]:
  """{name: f32 [L]} of sown scalars, one for each layer that sowed it."""
  return {
    name: _each(lambda value: value, groups)
    for name, groups in _grouped(sown).items()
  }


def names(sown: Mapping[str, Any]) -> set[str]:
  """The names under which anything was sown; its leaves may be shapes."""
  leaves = jax.tree_util.tree_leaves_with_path(sown)
  return {_keys(path)[-2] for path, _ in leaves}


def per_layer(sown: Mapping[str, Any]) -> dict[str, list[list[jax.Array]]]:
  """{name: groups}: the blocks of a period, each [repeats, ...].

  Blocks may differ in shape, such as in their number of experts.
  """
  return _grouped(sown)


def in_order(groups: list[list[jax.Array]]) -> list[jax.Array]:
  """One of `per_layer` as a list, in the order of the layers."""
  return [
    block[repeat]
    for group in groups
    for repeat in range(group[0].shape[0])
    for block in group
  ]


def merge(total, part, share):
  """Adds a micro-batch: counts as they are, means by its share of tokens."""
  return {
    name: jax.tree.map(
      lambda a, b, name=name: a + (b if _are_counts(name) else share * b),
      total[name],
      part[name],
    )
    for name in total
  }


def merge_parts(sown: Any, share_M: jax.Array) -> Any:
  """What parts of a batch sowed, [M, ...], as of the whole: see `merge`.

  Args:
    sown: a collection.
    share_M: the tokens of each part, as a share.
  """

  def one(path, value_M):
    if _are_counts(_keys(path)[-2]):
      return value_M.sum(0)
    return jnp.tensordot(share_M.astype(value_M.dtype), value_M, 1)

  return jax.tree_util.tree_map_with_path(one, sown)


def summarise(layers: Mapping[str, list[list[jax.Array]]]) -> dict[str, Any]:
  """Router health, f32 [L] each, in the order of the layers.

  `moe/load_max_over_mean` (1 is balanced), `moe/dead_experts` (picked by no
  token), `moe/entropy` (nats) and `moe/dropped_frac`; the same with a prefix
  for routers that are not a feed-forward's.
  """
  summary = {}
  for name, groups in layers.items():
    if _are_counts(name):
      prefix = f'moe/{name.removesuffix("counts")}'
      summary[f'{prefix}load_max_over_mean'] = _each(_peak, groups)
      summary[f'{prefix}dead_experts'] = _each(_dead, groups)
    else:
      summary[f'moe/{name}'] = _each(lambda value: value, groups)
  return summary


def _are_counts(name):
  return name.endswith('counts')


def _peak(counts_LE):
  return counts_LE.max(-1) / jnp.maximum(counts_LE.mean(-1), 1e-9)


def _dead(counts_LE):
  return (counts_LE == 0).sum(-1)


def _keys(path):
  """group, blocks_i, ..., name, index of the sow (0)."""
  return jax.tree_util.keystr(path, simple=True, separator='/').split('/')


def _grouped(sown):
  """{name: groups}; a group is the blocks of a scan, or one block alone."""
  groups: dict[str, dict[tuple, list]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
    keys = _keys(path)
    name, group = keys[-2], keys[0]
    block = int(re.fullmatch(r'blocks_(\d+)', keys[1])[1])
    scanned = group == 'layers'
    leaf = leaf if scanned else leaf[None]
    key = (ORDER.index(group), 0 if scanned else block)
    groups.setdefault(name, {}).setdefault(key, []).append((block, leaf))
  return {
    name: [
      [leaf for _, leaf in sorted(found[key], key=lambda pair: pair[0])]
      for key in sorted(found)
    ]
    for name, found in groups.items()
  }


def _each(reduce, groups):
  """`reduce` makes [repeats] of each block; all of them, [L]."""
  return jnp.concatenate([_flat([reduce(b) for b in g]) for g in groups])


def _flat(group):
  """The blocks of a period, [repeats] each, to [layers] in their order."""
  return jnp.stack(group, axis=1).reshape(-1)
