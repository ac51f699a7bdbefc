"""Rows of finished training runs, checked: the runs to fit, and the others."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

SIZES = (
  'params_active',
  'params_active_non_embedding',
  'params_total',
  'params_total_non_embedding',
)


@dataclasses.dataclass(frozen=True)
class Run:
  """One finished run.

  Attributes:
    budget: nominal training FLOPs; runs of a budget share it exactly.
    flops: training FLOPs spent.
    size: parameters, in the count that the analysis was asked for.
    loss: final validation loss, nats per token.
    seed: None where the row tells none.
    row: the row it came from, with nested keys.
  """

  name: str
  variant: str
  budget: float
  activation: float
  size: float
  tokens: float
  flops: float
  loss: float
  seed: int | None
  row: Mapping[str, Any]

  @property
  def cell(self) -> tuple[str, float, float, float]:
    """What runs that differ only in seed have in common."""
    return self.variant, self.budget, self.size, self.tokens

  @property
  def granularity(self) -> float:
    """How finely experts are cut, by the row's labels; nan if not told."""
    return _number(self.row, 'labels.granularity')

  @property
  def role(self) -> str | None:
    """'rates' for a run that searches learning rates and batches."""
    return _get(self.row, 'labels.role')


@dataclasses.dataclass(frozen=True)
class Excluded:
  """A row that is not fitted, and why."""

  name: str
  variant: str
  budget: float
  reason: str


def load(path: str | os.PathLike[str]) -> list[dict[str, str]]:
  """Rows of a results table (.csv), as text."""
  with open(path, newline='', encoding='utf-8') as f:
    return list(csv.DictReader(f))


def parse(
  rows: Iterable[Mapping[str, Any]], size: str = 'params_active'
) -> tuple[list[Run], list[Excluded]]:
  """Splits rows into runs to fit and rows excluded with a reason.

  Args:
    rows: mappings with nested or dotted keys; values may be text.
    size: the column that counts parameters, one of `SIZES`.

  Raises:
    ValueError: if a column is missing everywhere, or no row can be used.
  """
  nested_rows = [nested(row) for row in rows]
  if not nested_rows:
    raise ValueError(
      'results has no rows; run the sweep first, then report on its results.'
    )
  _require_columns([r for r in nested_rows if _finished(r)], size)
  runs, excluded = [], []
  for index, row in enumerate(nested_rows):
    found = _run(row, size, index)
    twin = _twin(found, runs)
    if twin is not None:
      found = Excluded(
        found.name,
        found.variant,
        found.budget,
        f'the same cell, seed and loss as {twin.name}: no second run',
      )
    (runs if isinstance(found, Run) else excluded).append(found)
  if not runs:
    reasons = sorted({e.reason for e in excluded})
    raise ValueError(
      f'results has {len(excluded)} rows and none can be used '
      f'({"; ".join(reasons[:3])}); rerun the failed cells, then report.'
    )
  return runs, excluded


def nested(row: Mapping[str, Any]) -> dict[str, Any]:
  """The row with dotted keys opened: `labels.variant` into `labels`."""
  out: dict[str, Any] = {}
  for key, value in row.items():
    *folders, last = str(key).split('.')
    place = out
    for folder in folders:
      below = place.setdefault(folder, {})
      if not isinstance(below, dict):
        below = place[folder] = {}
      place = below
    if isinstance(value, str) and value.startswith('{'):
      value = _json(value)
    if hasattr(value, 'items'):
      place[last] = {**(place.get(last) or {}), **nested(dict(value.items()))}
    elif value not in ('', None):
      place[last] = value
  return out


def _json(text):
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    return text


def _finished(row) -> bool:
  return row.get('status', 'ok') == 'ok'


def _require_columns(rows, size):
  if not rows:
    return
  if size not in SIZES:
    raise ValueError(f'size={size!r} must be one of {", ".join(SIZES)}.')
  needed = [size, 'tokens', 'train_flops', 'loss']
  needed += ['labels.variant', 'labels.budget_flops']
  missing = [k for k in needed if all(_get(r, k) is None for r in rows)]
  if missing:
    found = sorted({k for r in rows for k in _flat_keys(r)})
    raise ValueError(
      f'results lack the columns {", ".join(missing)}; found '
      f'{", ".join(found)}. Add them to the rows or labels.'
    )


def _flat_keys(row, prefix=''):
  for key, value in row.items():
    if isinstance(value, dict):
      yield from _flat_keys(value, f'{prefix}{key}.')
    else:
      yield prefix + key


def _get(row, key):
  for part in key.split('.'):
    row = row.get(part) if isinstance(row, dict) else None
  return row


def _number(row, key) -> float:
  try:
    return float(_get(row, key))
  except (TypeError, ValueError):
    return math.nan


def _run(row, size, index) -> Run | Excluded:
  name = str(row.get('name', f'row {index}'))
  variant = str(_get(row, 'labels.variant') or 'unlabelled')
  budget = _number(row, 'labels.budget_flops')
  if not _finished(row):
    reason = row.get('error') or 'no reason was recorded'
    status = row.get('status')
    return Excluded(name, variant, budget, f'{status}: {reason}')
  keys = ('labels.budget_flops', size, 'tokens', 'train_flops', 'loss')
  values = {key: _number(row, key) for key in keys}
  for key, value in values.items():
    if not math.isfinite(value) or value <= 0:
      shown = _get(row, key)
      return Excluded(
        name, variant, budget, f'{key}={shown} is not a positive number'
      )
  activation = _number(row, 'labels.activation_ratio')
  seeds = [_number(row, key) for key in ('labels.seed', 'seed')]
  seed = next((int(s) for s in seeds if math.isfinite(s)), None)
  return Run(
    name,
    variant,
    budget,
    activation if activation > 0 else math.nan,
    values[size],
    values['tokens'],
    values['train_flops'],
    values['loss'],
    seed,
    row,
  )


def _twin(found: Run | Excluded, runs: list[Run]) -> Run | None:
  """An earlier row of the very same run: it would feign a noise of 0."""
  if not isinstance(found, Run) or found.seed is None or found.role == 'rates':
    return None
  key = (found.cell, found.seed, found.loss)
  return next((r for r in runs if (r.cell, r.seed, r.loss) == key), None)


def variants(runs: Iterable[Run]) -> list[str]:
  """Names of variants, from all active (dense) to the sparsest."""
  activation: dict[str, float] = {}
  for run in runs:
    known = activation.get(run.variant, math.nan)
    activation[run.variant] = run.activation if math.isnan(known) else known
  return sorted(
    activation,
    key=lambda v: (
      math.isnan(activation[v]),
      -activation[v] if activation[v] > 0 else 0.0,
      v,
    ),
  )


def dense_variant(runs: Iterable[Run]) -> str | None:
  """The variant with activation ratio 1, else the one called dense."""
  runs = list(runs)
  for variant in variants(runs):
    mine = [r for r in runs if r.variant == variant]
    if all(r.activation == 1.0 for r in mine) or variant.lower() == 'dense':
      return variant
  return None


def provenance(runs: Iterable[Run]) -> list[tuple[str, list[str]]]:
  """What the runs say of where they ran: field -> distinct values."""
  seen: dict[str, dict[str, None]] = {}
  for run in runs:
    environment = run.row.get('environment')
    fields = dict(environment) if isinstance(environment, dict) else {}
    fields['data digest'] = run.row.get('data_digest')
    fields['seed'] = run.row.get('seed')
    for key, value in _flat(fields):
      if value is not None:
        seen.setdefault(key, {})[str(value)] = None
  return [(key, list(values)) for key, values in seen.items()]


def _flat(fields, prefix=''):
  for key, value in fields.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
