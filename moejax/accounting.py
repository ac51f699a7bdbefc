"""What a model costs: parameters and FLOPs, from its own modules.

FLOPs are those of products that a token causes, two for each multiplication
and addition: of matrices, of queries with the keys that they see (the causal
half, the window) and of short convolutions. Element-wise work is not counted:
norms, activations, gates, softmax, decays, sums of experts. Nor are lookups,
what is computed and masked out, and what is computed twice to save memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class Part(NamedTuple):
  """One row of the table of costs.

  Attributes:
    path: of its parameters.
    params: their number.
    params_active: of these, what one token uses.
    flops: forward, per token, of all layers that it stands for.
  """

  path: str
  params: int
  params_active: int
  flops: float


def parts(
  model: Model, seq_len: int, variables: tuple[Any, Any] | None = None
) -> list[Part]:
  """The parts of a model: what has FLOPs, and other parameters by module.

  Args:
    model: the model.
    seq_len: tokens of a sequence.
    variables: what `abstract_variables(model)` gave, if it is at hand.
  """
  flops = model.flops_by_path(seq_len)
  counts = {path: [0, 0] for path in flops}
  for row in parameter_rows(model, variables):
    homes = [p for p in flops if f'{row.path}/'.startswith(f'{p}/')]
    home = homes[0] if homes else row.path.rpartition('/')[0] or row.path
    both = counts.setdefault(home, [0, 0])
    both[0] += row.count
    both[1] += row.active_count
  return [Part(p, *both, flops.get(p, 0)) for p, both in counts.items()]


def table(
  model: Model, seq_len: int, variables: tuple[Any, Any] | None = None
) -> str:
  """Aligned text: a line for each of `parts`, then the totals."""
  variables = variables or abstract_variables(model)
  found = describe(model, seq_len, variables)
  head = ('part', 'parameters', 'active', 'forward FLOPs per token', 'share')
  total = model.flops(seq_len)
  lines = [
    (p.path, f'{p.params:,}', f'{p.params_active:,}', f'{round(p.flops):,}',
     f'{p.flops / total:.1%}')
    for p in parts(model, seq_len, variables)
  ]  # fmt: skip
  for name, suffix in (
    ('total', ''),
    ('total without embeddings', '_non_embedding'),
  ):
    both = (found[f'params_{kind}{suffix}'] for kind in ('total', 'active'))
    lines.append((name, *(f'{n:,}' for n in both), f'{round(total):,}', ''))
  widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
  text = [
    '  '.join(
      cell.ljust(width) if place == 0 else cell.rjust(width)
      for place, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in (head, *lines)
  ]
  trained, rule = found['flops_per_token'], found['flops_per_token_6n']
  inner = 6 * found['params_active_non_embedding']
  text.append(
    f'training: {round(trained):,} FLOPs per token; 6 N is {rule:,} with the '
    f'active parameters ({rule / trained:.2f} of it), {inner:,} without '
    f'embeddings ({inner / trained:.2f})'
  )
  return '\n'.join(text)


def train_flops_per_token(model: Model, seq_len: int) -> float:
  """FLOPs of forward and backward per token, the head included.

  Three times those of the forward pass. Recomputation is not counted: MFU is
  about useful work.
  """
  return TRAIN_OVER_FORWARD * model.flops(seq_len)


def steps_within(budget_flops: float, step_flops: float) -> int:
  """Optimiser steps whose training FLOPs are nearest to a budget, 1 or more."""
  return max(1, round(budget_flops / step_flops))


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
    'flops_per_token_6n': 6 * totals['active'],
  }
