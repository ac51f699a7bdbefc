"""Sown values: gathered by name, in the order of the layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Groups of layers in the order in which a token meets them.
ORDER = ('before', 'layers', 'after')


def by_name(sown: Mapping[str, Any]) -> dict[str, jax.Array]:
  """{name: f32 [L]} of sown scalars, one for each layer that sowed it."""
  return {
    name: jnp.concatenate([_flat(group) for group in groups])
    for name, groups in _grouped(sown).items()
  }


def names(sown: Mapping[str, Any]) -> set[str]:
  """The names under which anything was sown."""
  return set(_grouped(sown))


def per_layer(sown: Mapping[str, Any]) -> dict[str, tuple[jax.Array, ...]]:
  """{name: arrays [L, ...]}, one array per group of like layers."""
  return {
    name: tuple(_stack(group) for group in groups)
    for name, groups in _grouped(sown).items()
  }


def merge(total, part, share):
  """Adds a micro-batch: counts as they are, means by its share of tokens."""
  return {
    name: jax.tree.map(
      lambda a, b, name=name: a + (b if name == 'counts' else share * b),
      total[name],
      part[name],
    )
    for name in total
  }


def summarise(layers: Mapping[str, tuple[jax.Array, ...]]) -> dict[str, Any]:
  """Router health, f32 [L] each.

  `moe/load_max_over_mean` (1 is balanced), `moe/dead_experts` (picked by no
  token), `moe/entropy` (nats) and `moe/dropped_frac`.
  """
  summary = {}
  for name, groups in layers.items():
    if name == 'counts':
      mean = [g.mean(-1) for g in groups]
      peak = [
        g.max(-1) / jnp.maximum(m, 1e-9)
        for g, m in zip(groups, mean, strict=True)
      ]
      summary['moe/load_max_over_mean'] = jnp.concatenate(peak)
      dead = [(g == 0).sum(-1) for g in groups]
      summary['moe/dead_experts'] = jnp.concatenate(dead)
    else:
      summary[f'moe/{name}'] = jnp.concatenate(groups)
  return summary


def _grouped(sown):
  """{name: groups}; a group is like layers: [leaf per block] of a scan."""
  groups: dict[str, dict[tuple, list]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
    keys = jax.tree_util.keystr(path, simple=True, separator='/').split('/')
    # keys: group, blocks_i, ..., name, index of the sow (0)
    name, group = keys[-2], keys[0]
    block = int(re.fullmatch(r'blocks_(\d+)', keys[1])[1])
    scanned = group == 'layers'
    leaf = leaf if scanned else leaf[None]
    key = (ORDER.index(group), 0 if scanned else block, leaf.shape)
    groups.setdefault(name, {}).setdefault(key, []).append((block, leaf))
  return {
    name: [
      [leaf for _, leaf in sorted(found[key], key=lambda pair: pair[0])]
      for key in sorted(found, key=lambda key: key[:2])
    ]
    for name, found in groups.items()
  }


def _stack(group):
  """Leaves [repeats, ...] of the blocks of a period, to [layers, ...]."""
  stacked = jnp.stack(group, axis=1)
  return stacked.reshape(-1, *stacked.shape[2:])


def _flat(group):
  return _stack(group).reshape(-1)
