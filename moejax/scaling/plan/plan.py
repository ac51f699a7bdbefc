"""The plan of a sweep: its cells, what they cost, and what is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from moejax import config_io
from moejax.scaling import forms, runs
from moejax.scaling.plan import memory
from moejax.scaling.plan.choose import Choice
from moejax.scaling.plan.count import Counted, Dropped, count
from moejax.scaling.plan.spend import Rule
from moejax.scaling.rates import ROLE
from moejax.sweep.hyper import Cell


class Row(NamedTuple):
  """A cell that is to be run.

  Attributes:
    best: the size expected to be best at its budget, None without a law.
    hours: of training, None where the speed is not known.
    memory: bytes on a chip and their limit, None where nobody was asked.
  """

  one: Counted
  best: float | None
  hours: float | None
  memory: tuple[float, float] | None


class Outcome(NamedTuple):
  """What a sweep will run.

  Attributes:
    sources: what the numbers rest on: (what, where from).
  """

  rows: list[Row]
  dropped: list[Dropped]
  sources: list[tuple[str, str]]

  @property
  def cells(self) -> list[Cell]:
    return [row.one.cell for row in self.rows]


@dataclasses.dataclass(frozen=True)
class Plan(Rule):
  """Turns the cells of a recipe into those that a sweep runs.

  Attributes:
    choose: which cells, such as `Around`; None runs every cell as it is laid,
      and notes which rules it breaks.
    optimum: law of the best size, such as `Surface` or `Fitted`.
    rates: law of learning rate and batch (`Rates`); None keeps the recipe's.
    speed: FLOPs/s of a cell (`Measured`, `Chip`), for the hours.
    memory: a gate, `config -> (bytes on a chip, limit)`; None asks nobody.
    size: the parameter count that is used as N, one of `runs.SIZES`.
  """

  choose: Callable | None = None
  optimum: Callable | None = None
  rates: Callable | None = None
  speed: Callable | None = None
  memory: memory.Gate | None = None
  size: str = 'params_active'

  def __post_init__(self):
    super().__post_init__()
    if self.size not in runs.SIZES:
      raise ValueError(
        f'size={self.size!r} must be one of {", ".join(runs.SIZES)}.'
      )
    if self.choose is not None and self.optimum is None:
      raise ValueError(
        'choose lays sizes about the best one, but optimum=None; give a law, '
        'such as scaling.plan.Surface.'
      )
    if self.choose is None and self.rates is not None:
      raise ValueError(
        'rates change cells, but choose=None keeps them as they are laid; give '
        'choose, such as scaling.plan.Around, or leave rates out.'
      )

  def __call__(self, cells: Iterable[Cell], base: ConfigDict) -> Outcome:
    """The plan of these cells of `base`.

    Raises:
      ValueError: no cell is left, or a law has no optimum for one.
    """
    counted = count(cells, base, self.size)
    best = self._best(counted)
    if self.choose is None:
      chosen, dropped = [self._checked(one) for one in counted], []
    else:
      laid = [one for one in counted if one.role == ROLE]
      family = [one for one in counted if one.role != ROLE]
      choices, dropped = self.choose(family, best)
      chosen = self._settled(choices, dropped)
      chosen += [self._checked(one) for one in laid]
    asked = {} if self.memory is None else memory.ask(self.memory, chosen)
    if self.choose is not None:
      chosen = self._fitting(chosen, asked, dropped)
    if not chosen:
      raise ValueError(
        f'no cell of {len(counted)} is left, the first because: '
        f'{dropped[0].name}: {dropped[0].reason}.'
      )
    rates = self.speed(chosen) if self.speed else [None] * len(chosen)
    rows = [
      Row(
        one,
        best(one) if self.optimum else None,
        rate and one.spent() / rate / 3600,
        asked.get(one.cell.name),
      )
      for one, rate in zip(chosen, rates, strict=True)
    ]
    return Outcome(rows, dropped, self._sources())

  def _best(self, counted: list[Counted]) -> Callable[[Counted], float]:
    groups: dict[str, list[Counted]] = {}
    for one in counted:
      groups.setdefault(one.variant, []).append(one)
    costs = {
      variant: forms.Cost.through(
        [one.size for one in group], [one.flops_per_token for one in group]
      )
      for variant, group in groups.items()
    }

    def best(one):
      flops = one.budget or one.spent()
      return self.optimum(one.variant, flops, costs[one.variant])

    return best

  def _checked(self, one: Counted) -> Counted:
    broken = self.broken(one)
    return one if broken is None else one.noting(broken)

  def _settled(self, choices: list[Choice], dropped) -> list[Counted]:
    """Cells with learning rates and batches; drops what breaks a rule."""
    out, tried = [], set()
    for choice in choices:
      one, exact = choice.one, choice.role is not None
      rate, tokens, notes = None, None, ()
      if self.rates is not None:
        rate, tokens, notes = self.rates(one.variant, one.budget)
      train = one.config.train
      rows = tokens / train.seq_len if tokens else train.batch_size
      found = self.spending(one, rows * choice.batch, exact)
      if not isinstance(found, str):
        if rate is not None or exact:
          found = _at_rate(found, choice, rate or _own_rate(one))
        found = _untried(found, tried)
      if isinstance(found, str):
        dropped.append(Dropped(choice.name, found))
      else:
        out.append(found.noting(*notes))
    return out

  def _fitting(self, cells, asked: Mapping, dropped) -> list[Counted]:
    out = []
    for one in cells:
      why = memory.refusal(*asked[one.cell.name]) if asked else None
      if why is None:
        out.append(one)
      else:
        dropped.append(Dropped(one.cell.name, why))
    return out

  def _sources(self) -> list[tuple[str, str]]:
    out = [('N', self.size)]
    if self.optimum is not None:
      out.append(('best size N*', self.optimum.told(self.size)))
    if self.rates is not None:
      out.append(('learning rate and batch', self.rates.told()))
    told = 'unknown; give config.sweep.plan.speed'
    out.append(('speed', self.speed.told() if self.speed else told))
    return out


def _own_rate(one: Counted) -> float:
  if one.learning_rate is None:
    raise ValueError(
      f'cell {one.cell.name!r} has no config.optim.schedule.peak to vary; give '
      'a schedule with a peak.'
    )
  return one.learning_rate


def _untried(one: Counted, tried: set) -> Counted | str:
  """The cell, or why not: batches of few rows may round to one."""
  key = config_io.to_json(one.config)
  if key in tried:
    return (
      f'its batch is rounded to {one.config.train.batch_size} rows, which '
      'another cell has; lower batch_multiple, or take batches further apart'
    )
  tried.add(key)
  return one


def _at_rate(one: Counted, choice: Choice, rate: float) -> Counted:
  changes = {'optim.schedule.peak': rate * choice.learning_rate}
  if choice.role is not None:
    changes['labels'] = dict(one.config.labels) | dict(
      role=choice.role,
      variant=one.variant,
      budget_flops=one.budget,
      peak_lr=changes['optim.schedule.peak'],
      batch_tokens=one.step_tokens(),
    )
  return one.having(changes, choice.name)
