"""What a model costs: parameters and FLOPs, from its own modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from moejax import metrics
from moejax.metrics.parameters import Parameter
from moejax.model import Model
from moejax.sharding import is_axes
from moejax.state import abstract_variables

# A training step does the forward pass's work three times: once forward,
# twice backward (for the inputs and for the weights).
TRAIN_OVER_FORWARD = 3


def parameter_rows(
  model: Model, variables: tuple[Any, Any] | None = None
) -> list[Parameter]:
  """All parameters, sorted by path.

  Args:
    model: the model.
    variables: what `abstract_variables(model)` gave, if it is at hand.
  """
  shapes, names = variables or abstract_variables(model)
  fracs = model.active_fracs()
  leaves = jax.tree_util.tree_leaves_with_path(shapes['params'])
  axes = jax.tree.leaves(names['params'], is_leaf=is_axes)
  rows = []
  for (path, leaf), axis in zip(leaves, axes, strict=True):
    where = jax.tree_util.keystr(path, simple=True, separator='/')
    frac = math.prod(
      f for p, f in fracs.items() if f'{where}/'.startswith(f'{p}/')
    )
    count = math.prod(leaf.shape)
    active = round(count * frac)
    rows.append(Parameter(where, axis, leaf.shape, leaf.dtype, count, active))
  return sorted(rows, key=lambda row: row.path)


def train_flops_per_token(model: Model, seq_len: int) -> float:
  """FLOPs of forward and backward per token, the head included.

  Recomputation is not counted: MFU is about useful work.
  """
  return TRAIN_OVER_FORWARD * model.flops(seq_len)


def decode_bytes(
  rows: Sequence[Parameter], batch: int, dtype: str = 'bfloat16'
) -> dict[str, float]:
  """Bytes of parameters that a decode step of `batch` sequences reads.

  Without embeddings and head. `raw` counts what each token reads anew, `unique`
  a row or an expert once however many tokens share it. Tokens are taken to
  choose evenly, each for itself. `rows` are those of `parameter_rows`.

  Source: 2508.18756 sec. 1 and 2411.12364 sec. 2 (memory access).

  Raises:
    ValueError: if `batch` is not positive.
  """
  if batch < 1:
    raise ValueError(f'batch={batch} reads nothing; give at least 1.')
  raw = unique = 0.0
  for row in rows:
    if 'vocab' in row.logical_axes:
      continue
    frac = row.active_count / row.count
    raw += row.count * (batch * frac if frac < 1 else 1)
    unique += row.count * (1 - (1 - frac) ** batch)
  size = jnp.dtype(dtype).itemsize
  return {'raw': size * raw, 'unique': size * unique}


def describe(
  model: Model, seq_len: int, variables: tuple[Any, Any] | None = None
) -> dict[str, Any]:
  """The parameter totals and the FLOPs, as recorded with a result."""
  totals = metrics.parameter_totals(parameter_rows(model, variables))
  return {
    'params_total': totals['total'],
    'params_active': totals['active'],
    'params_total_non_embedding': totals['total_without_embeddings'],
    'params_active_non_embedding': totals['active_without_embeddings'],
    'flops_per_token': train_flops_per_token(model, seq_len),
  }
