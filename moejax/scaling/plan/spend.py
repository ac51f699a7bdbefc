"""Batch and steps that spend a budget."""

from __future__ import annotations

import dataclasses

from moejax.page import count
from moejax.scaling.plan.count import Counted


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a run must keep to.

  Attributes:
    tolerance_frac: by how much the FLOPs of whole steps may miss the budget.
    min_steps: the least optimiser steps.
    batch_multiple: what the rows of a batch must be a multiple of.
  """

  tolerance_frac: float = 0.01
  min_steps: int = 1
  batch_multiple: int = 1

  def __post_init__(self):
    if not 0 < self.tolerance_frac < 1:
      raise ValueError(
        f'tolerance_frac={self.tolerance_frac} must lie between 0 and 1, such '
        'as 0.01.'
      )
    for name in ('min_steps', 'batch_multiple'):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
          f'{name}={value!r} must be a whole number of at least 1; correct it.'
        )

  def broken(self, one: Counted, rows: int | None = None) -> str | None:
    """Which rule a cell breaks with `rows` in a batch (None: its own)."""
    rows = rows or one.config.train.batch_size
    steps, error_frac = one.steps(rows), one.error_frac(rows)
    if steps < self.min_steps:
      return f'{steps} steps, below min_steps={self.min_steps}'
    if abs(error_frac) > self.tolerance_frac:
      return (
        f'{steps} steps of {count(rows * one.config.train.seq_len)} tokens, '
        f'which miss the budget by {100 * error_frac:+.1f} %, tolerance '
        f'{100 * self.tolerance_frac:g} %'
      )
    return None

  def spending(
    self, one: Counted, batch_size: float, exact: bool = False
  ) -> Counted | str:
    """The cell with the largest batch up to `batch_size` that keeps the rules.

    Args:
      one: a cell.
      batch_size: rows that are wanted.
      exact: whether no smaller batch will do.

    Returns:
      The cell, or why there is none.
    """
    unit = self.batch_multiple
    wanted = max(1, round(batch_size / unit)) * unit
    for rows in range(wanted, wanted - 1 if exact else 0, -unit):
      if self.broken(one, rows) is None:
        found = one.having({'train.batch_size': rows})
        if rows == wanted:
          return found
        note = f'batch of {rows} rows instead of {wanted}, for its rules'
        return found.noting(note)
    rows = wanted if exact else unit
    return (
      f'{"" if exact else "even "}a batch of {rows} rows has '
      f'{self.broken(one, rows)}; raise the budget, or lower batch_multiple or '
      'seq_len'
    )
