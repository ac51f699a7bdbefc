"""What a model costs: parameters and FLOPs, from its own modules."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from moejax.model import Model
from moejax.state import abstract_variables

# A training step does the forward pass's work three times: once forward,
# twice backward (for the inputs and for the weights).
TRAIN_OVER_FORWARD = 3


@dataclasses.dataclass(frozen=True)
class ParameterRow:
  """One parameter: where it is, how large, and what a token uses of it."""

  path: str
  axes: tuple[str | None, ...]
  shape: tuple[int, ...]
  dtype: str
  count: int
  active_count: int

  @property
  def is_embedding(self) -> bool:
    return 'vocab' in self.axes


def parameter_rows(model: Model) -> list[ParameterRow]:
  """All parameters, sorted by path."""
  shapes, names = abstract_variables(model)
  fracs = model.active_fracs()
  leaves = jax.tree_util.tree_leaves_with_path(shapes['params'])
  axes = jax.tree.leaves(
    names['params'], is_leaf=lambda x: isinstance(x, tuple)
  )
  rows = []
  for (path, leaf), axis in zip(leaves, axes, strict=True):
    where = jax.tree_util.keystr(path, simple=True, separator='/')
    frac = math.prod(f for p, f in fracs.items() if where.startswith(p + '/'))
    count = math.prod(leaf.shape)
    rows.append(
      ParameterRow(
        where, axis, leaf.shape, str(leaf.dtype), count, round(count * frac)
      )
    )
  return sorted(rows, key=lambda row: row.path)


def totals(model: Model) -> dict[str, int]:
  """Parameters: total and active, with and without embeddings.

  Embeddings are the parameters with a vocabulary axis, an untied head
  included.
  """
  rows = parameter_rows(model)
  inner = [row for row in rows if not row.is_embedding]
  return {
    'params_total': sum(row.count for row in rows),
    'params_active': sum(row.active_count for row in rows),
    'params_total_non_embedding': sum(row.count for row in inner),
    'params_active_non_embedding': sum(row.active_count for row in inner),
  }


def train_flops_per_token(model: Model, seq_len: int) -> float:
  """FLOPs of forward and backward per token, the head included.

  Recomputation is not counted: MFU is about useful work.
  """
  return TRAIN_OVER_FORWARD * model.flops(seq_len)


def describe(model: Model, seq_len: int) -> dict[str, Any]:
  """The parameter totals and the FLOPs, as recorded with a result."""
  flops = train_flops_per_token(model, seq_len)
  return totals(model) | {'flops_per_token': flops}
