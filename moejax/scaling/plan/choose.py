"""Which cells of a family a sweep runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from moejax.page import count, number
from moejax.scaling.plan.count import Counted, Dropped
from moejax.scaling.rates import ROLE

# Best size of a cell's variant at its budget.
Best = Callable[[Counted], float]
LEAST_SIZES = 3  # what a parabola needs


class Choice(NamedTuple):
  """A cell to run, and factors on its learning rate and batch."""

  one: Counted
  learning_rate: float = 1.0
  batch: float = 1.0
  role: str | None = None

  @property
  def name(self) -> str:
    """Of the cell's folder."""
    name = self.one.cell.name
    if self.role is None:
      return name
    return f'{name}-rate{self.learning_rate:g}-batch{self.batch:g}'


@dataclasses.dataclass(frozen=True)
class Around:
  """Sizes about the best one, for every variant and budget.

  The targets are N* spacing^j, centred on N*; each takes the family's nearest
  size, which must lie within half a step of it.

  Attributes:
    sizes: of each variant and budget.
    spacing: ratio of successive sizes.
  """

  sizes: int = 4
  spacing: float = 1.6

  def __post_init__(self):
    if self.sizes < LEAST_SIZES:
      raise ValueError(
        f'sizes={self.sizes} fix no parabola; use at least {LEAST_SIZES}.'
      )
    if not 1 < self.spacing < math.inf:
      raise ValueError(
        f'spacing={self.spacing} is the ratio of successive sizes; it must be '
        'above 1, such as 1.6.'
      )

  def __call__(
    self, counted: Iterable[Counted], best: Best
  ) -> tuple[list[Choice], list[Dropped]]:
    chosen, dropped = [], []
    for group in groups(counted).values():
      middle, used = best(group[0]), {}
      for j in range(self.sizes):
        target = middle * self.spacing ** (j - (self.sizes - 1) / 2)
        one = nearest(group, target)
        why = self._refusal(one, target, used)
        if why is None:
          used[one.size] = target
          # Cells of one size differ in their seed.
          chosen += [Choice(c) for c in group if c.size == one.size]
        else:
          name = f'{one.variant} C={one.budget:.1e} N={count(target)}'
          dropped.append(Dropped(name, why))
    return chosen, dropped

  def _refusal(self, one, target, used) -> str | None:
    off = abs(math.log(one.size / target)) / math.log(self.spacing)
    # Half a step, but for rounding.
    if off > 0.5 + 1e-9:
      return (
        f'no size of the family is within a factor {self.spacing**0.5:.2f} of '
        f'{count(target)}; the nearest is {count(one.size)} ({one.cell.name})'
      )
    if one.size in used:
      return (
        f'{one.cell.name} ({count(one.size)}) serves {count(used[one.size])} '
        'already; the family is too coarse'
      )
    return None


@dataclasses.dataclass(frozen=True)
class RateGrid:
  """The inner sweep: rates and batches at the smallest budget, best size.

  Its cells get `labels.role` 'rates', so that no law of size is fitted to
  them, and the rate and batch as `labels.peak_lr` and `labels.batch_tokens`.

  Attributes:
    learning_rates: factors on the learning rate of the law or the recipe.
    batches: factors on the batch.
  """

  learning_rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
  batches: tuple[float, ...] = (0.5, 1.0, 2.0)

  def __post_init__(self):
    for name in ('learning_rates', 'batches'):
      factors = getattr(self, name)
      if not factors or min(factors) <= 0 or len(set(factors)) < len(factors):
        raise ValueError(
          f'{name}={factors} must be different factors above 0, such as '
          '(0.5, 1.0, 2.0).'
        )

  def __call__(
    self, counted: Iterable[Counted], best: Best
  ) -> tuple[list[Choice], list[Dropped]]:
    least = {}
    for (variant, budget), group in groups(counted).items():
      if variant not in least or budget < least[variant][0].budget:
        least[variant] = group
    chosen = [
      Choice(nearest(group, best(group[0])), rate, batch, ROLE)
      for group in least.values()
      for rate in self.learning_rates
      for batch in self.batches
    ]
    return chosen, []


def groups(
  counted: Iterable[Counted],
) -> dict[tuple[str, float], list[Counted]]:
  """Cells by variant and budget.

  Raises:
    ValueError: a cell has no budget.
  """
  out: dict[tuple[str, float], list[Counted]] = {}
  for one in counted:
    if one.budget is None:
      raise ValueError(
        f'cell {one.cell.name!r} has config.train.steps='
        f'{one.config.train.steps} and no budget; give '
        f'config.train.budget_flops, such as {number(one.spent(), 2)}.'
      )
    out.setdefault((one.variant, one.budget), []).append(one)
  return out


def nearest(group: Iterable[Counted], size: float) -> Counted:
  """The cell whose size is the nearest by ratio."""
  return min(group, key=lambda one: abs(math.log(one.size / size)))
