"""What the cells of a sweep would spend, counted without running them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from moejax import accounting, config_io
from moejax.build import build
from moejax.sweep.hyper import Cell


class Dropped(NamedTuple):
  """A cell that is not run, and why."""

  name: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Counted:
  """A cell with its costs.

  Attributes:
    config: the cell's whole config.
    size: parameters, in the count that the plan was asked for.
    flops_per_token: of training.
    notes: what is to be known of it.
  """

  cell: Cell
  config: ConfigDict
  size: float
  flops_per_token: float
  notes: tuple[str, ...] = ()

  @property
  def variant(self) -> str:
    return str((self.config.labels or {}).get('variant') or 'unlabelled')

  @property
  def role(self) -> str | None:
    """What the run is for, such as 'rates' for an inner sweep."""
    return (self.config.labels or {}).get('role')

  @property
  def budget(self) -> float | None:
    """Training FLOPs to spend; None where the steps are given instead."""
    return self.config.train.budget_flops

  def step_tokens(self, rows: int | None = None) -> int:
    """Tokens of a step with `rows` in a batch (None: the config's)."""
    train = self.config.train
    return (rows or train.batch_size) * train.seq_len

  def steps(self, rows: int | None = None) -> int:
    """Optimiser steps: as given, or what the budget pays for."""
    if self.budget is None:
      return self.config.train.steps
    step_flops = self.step_tokens(rows) * self.flops_per_token
    return accounting.steps_within(self.budget, step_flops)

  def tokens(self, rows: int | None = None) -> int:
    return self.steps(rows) * self.step_tokens(rows)

  def spent(self, rows: int | None = None) -> float:
    """Training FLOPs of whole steps."""
    return self.tokens(rows) * self.flops_per_token

  def error_frac(self, rows: int | None = None) -> float:
    """Spent / budget - 1; 0 without a budget."""
    return self.spent(rows) / self.budget - 1 if self.budget else 0.0

  @property
  def learning_rate(self) -> float | None:
    """Peak of the schedule, None where there is none."""
    return (self.config.optim.get('schedule') or {}).get('peak')

  def having(
    self, changes: Mapping[str, Any], name: str | None = None
  ) -> Counted:
    """The cell with other values at these paths; they cost the same."""
    cell = Cell(name or self.cell.name, {**self.cell.overrides, **changes})
    config = config_io.override(self.config, changes)
    return dataclasses.replace(self, cell=cell, config=config)

  def noting(self, *notes: str) -> Counted:
    return dataclasses.replace(self, notes=(*self.notes, *notes))


def count(cells: Iterable[Cell], base: ConfigDict, size: str) -> list[Counted]:
  """Counts every cell; cells of one model are counted once.

  Args:
    cells: of the sweep.
    base: the config that they override.
    size: the parameter count that is used as N.
  """
  known = {}
  out = []
  for cell in cells:
    config = config_io.override(base, cell.overrides)
    seq_len = config.train.seq_len
    key = config_io.to_json(config.model), seq_len
    if key not in known:
      model = build(config.model, f'cell {cell.name!r}: config.model')
      known[key] = accounting.describe(model, seq_len)
    costs = known[key]
    out.append(Counted(cell, config, costs[size], costs['flops_per_token']))
  return out
