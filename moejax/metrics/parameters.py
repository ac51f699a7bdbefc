"""The table of a model's parameters, and the numbers that name its size."""

from typing import Any, NamedTuple

import numpy as np


class Parameter(NamedTuple):
  """One row of the table; plain tuples in this order do as well."""

  path: str
  logical_axes: tuple[str | None, ...]
  shape: tuple[int, ...]
  dtype: Any
  count: int
  active_count: float  # parameters that one token uses


def parameter_totals(rows):
  """Dict of total and active counts, each with and without embeddings.

  A parameter that has the logical axis 'vocab' is an embedding: the input
  table and, where the head is not tied to it, the head.
  """
  rows = [Parameter(*row) for row in rows]
  inner = [row for row in rows if 'vocab' not in row.logical_axes]
  return {
    'total': sum(row.count for row in rows),
    'active': sum(row.active_count for row in rows),
    'total_without_embeddings': sum(row.count for row in inner),
    'active_without_embeddings': sum(row.active_count for row in inner),
  }


def parameter_table(rows):
  """Aligned text: a line for each parameter, then the totals.

  Args:
    rows: list of (path, logical_axes, shape, dtype, count, active_count).
  """
  head = ('parameter', 'axes', 'shape', 'dtype', 'count', 'active')
  lines = [_cells(Parameter(*row)) for row in rows]
  totals = parameter_totals(rows)
  for label, suffix in (
    ('total', ''),
    ('total without embeddings', '_without_embeddings'),
  ):
    numbers = (totals['total' + suffix], totals['active' + suffix])
    lines.append((label, '', '', '', *map(_number, numbers)))
  widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
  rule = '-' * (sum(widths) + 2 * (len(widths) - 1))
  text = [_aligned(line, widths) for line in (head, *lines)]
  return '\n'.join([text[0], rule, *text[1:-2], rule, *text[-2:]])


def _cells(row):
  axes = ', '.join(str(axis) for axis in row.logical_axes)
  shape = ' x '.join(f'{size:,}' for size in row.shape)
  dtype = np.dtype(row.dtype).name
  numbers = map(_number, (row.count, row.active_count))
  return (row.path, axes, shape, dtype, *numbers)


def _number(count):
  return f'{round(count):,}'


def _aligned(line, widths):
  cells = [
    cell.rjust(width) if column >= 4 else cell.ljust(width)
    for column, (cell, width) in enumerate(zip(line, widths, strict=True))
  ]
  return '  '.join(cells).rstrip()
