"""Any table of runs as covariates and measured values."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from moejax.scaling import forms
from moejax.scaling.fit import FitRefused
from moejax.scaling.rates import ROLE

# Where a symbol is looked for, in order, after a column of its own name.
USUAL_COLUMNS = {
  'N': ('params_active', 'params'),
  'D': ('tokens',),
  'C': ('train_flops', 'flops'),
  'E': ('num_experts',),
  'A': ('activation_ratio', 'labels.activation_ratio'),
  'value': ('loss',),
}
# What follows from other symbols where there is no column.
FOLLOWS = {
  'C': (('N', 'D'), '6 N D', lambda z: 6 * z['N'] * z['D']),
  'M': (('N', 'D'), 'D / N', lambda z: z['D'] / z['N']),
}


class Table(NamedTuple):
  """The runs that a law can be fitted to.

  Attributes:
    covariates: symbol -> values, `[runs]`.
    values: what the law predicts, mostly a loss, `[runs]`.
    sources: symbol -> the column or the formula that it came from.
    excluded: rows left out, each with the reason.
  """

  covariates: dict[str, np.ndarray]
  values: np.ndarray
  sources: dict[str, str]
  excluded: tuple[str, ...]


def read(
  path: str | os.PathLike[str],
  form: forms.PowerSum,
  columns: Mapping[str, str] | None = None,
) -> Table:
  """Reads the columns of a CSV file that a law needs.

  Args:
    path: a CSV file with a line of names.
    form: the law; its covariates are looked for.
    columns: symbol -> column, `value` for what the law predicts; the others
      are found by name (`USUAL_COLUMNS`) or follow from N and D.

  Raises:
    ValueError: no such file, no such column (those found are listed).
    FitRefused: no row can be used, or a covariate never changes.
  """
  rows = _rows(path)
  columns = dict(columns or {})
  symbols = (*form.covariates, 'value')
  _check_columns(columns, (*symbols, 'N', 'D'), rows, path)
  sources, found = {}, {}
  for symbol in symbols:
    sources[symbol], found[symbol] = _column(symbol, columns, rows, path, form)
  good, excluded = _usable(found, rows, sources)
  if not good.any():
    raise FitRefused(
      f'{path}: none of {len(rows)} rows can be used ({excluded[0]}); give '
      'rows with positive numbers.'
    )
  kept = {symbol: values[good] for symbol, values in found.items()}
  _check_change(kept, form, path)
  return Table(kept, kept.pop('value'), sources, tuple(excluded))


def _rows(path) -> list[dict[str, str]]:
  try:
    # Spreadsheets begin a file with a mark of its encoding.
    with open(path, newline='', encoding='utf-8-sig') as file:
      table = csv.DictReader(file)
      rows, names = list(table), table.fieldnames or []
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', None) or 'it is no text'
    raise ValueError(f'{path}: {reason}; give a CSV file of runs.') from error
  if not rows:
    raise ValueError(f'{path} has no rows; give one line per run.')
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise ValueError(f'{path} has two columns {twice[0]!r}; rename one.')
  longer = [i for i, row in enumerate(rows, 1) if None in row]
  if longer:
    raise ValueError(
      f'{path}: row {longer[0]} has more cells than the {len(names)} columns; '
      'remove them, or name their columns.'
    )
  return rows


def _check_columns(columns, symbols, rows, path):
  for symbol, column in columns.items():
    if symbol not in symbols:
      raise ValueError(
        f'{symbol}={column}: this law has no {symbol}; its symbols are '
        f'{", ".join(dict.fromkeys(symbols))}.'
      )
    if column not in rows[0]:
      raise ValueError(
        f'{path} has no column {column!r} for {symbol}; found '
        f'{", ".join(map(str, rows[0]))}.'
      )


def _column(symbol, columns, rows, path, form):
  """Where a symbol comes from, and its values with nan for what is none."""
  for name in (columns.get(symbol), symbol, *USUAL_COLUMNS.get(symbol, ())):
    if name in rows[0]:
      return name, np.array([_number(row[name]) for row in rows])
  if symbol in FOLLOWS:
    needed, formula, function = FOLLOWS[symbol]
    inner = {s: _column(s, columns, rows, path, form)[1] for s in needed}
    return formula, function(inner)
  raise ValueError(
    f'{path} lacks {symbol}, which {form.equation} needs; found '
    f'{", ".join(map(str, rows[0]))}. Name its column: --columns={symbol}=NAME.'
  )


def _number(text) -> float:
  try:
    return float(text)
  except (TypeError, ValueError):
    return math.nan


def _usable(found, rows, sources):
  """bool [rows], and why each of the other rows is not used."""
  good, excluded = np.ones(len(rows), bool), []
  for index, row in enumerate(rows):
    values = {symbol: column[index] for symbol, column in found.items()}
    why = _unusable(row, values, sources)
    if why is not None:
      name = row.get('name') or row.get('run') or f'row {index + 1}'
      excluded.append(f'{name}: {why}')
      good[index] = False
  return good, excluded


def _unusable(row, values, sources) -> str | None:
  """Why a run is not fitted, None where it is."""
  if row.get('status', 'ok') != 'ok':
    return f'status={row["status"]}'
  if row.get('labels.role') == ROLE:
    return f'labels.role={ROLE}: it varies the learning rate, not the size'
  for symbol, value in values.items():
    if not (math.isfinite(value) and value > 0):
      shown = row.get(sources[symbol], f'{value:g}') or 'nothing'
      return f'{symbol}={shown} is not a positive number'
  return None


def _check_change(kept, form, path):
  if np.ptp(np.log(kept['value'])) < 1e-12:
    raise FitRefused(
      f'{path}: the value is {kept["value"][0]:g} in all {len(kept["value"])} '
      'usable rows, so there is no law to find; name another column as value.'
    )
  for symbol in form.covariates:
    if np.ptp(np.log(kept[symbol])) < 1e-9:
      raise FitRefused(
        f'{path}: {symbol}={kept[symbol][0]:g} in all {len(kept["value"])} '
        f'usable rows, so {form.equation} cannot be told from it; add runs '
        f'of another {symbol}.'
      )
