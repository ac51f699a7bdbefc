"""A plan as text: Markdown that reads well on a terminal."""

from __future__ import annotations

from moejax import page
from moejax.clock import duration
from moejax.page import count, number, percent
from moejax.scaling.plan.choose import groups
from moejax.scaling.plan.plan import Outcome, Row
from moejax.scaling.rates import ROLE


def markdown(title: str, outcome: Outcome, jobs: int = 1) -> str:
  """The cost of it all, the cells, and what is dropped and why.

  Args:
    title: names the sweep.
    outcome: the plan.
    jobs: cells that run at once.
  """
  blocks = [page.Items(summary(outcome, jobs)), page.Heading('Cells')]
  blocks.append(_table(outcome.rows))
  noted = [
    f'{row.one.cell.name}: {"; ".join(row.one.notes)}'
    for row in outcome.rows
    if row.one.notes
  ]
  if noted:
    blocks += [page.Heading('Notes'), page.Items(noted)]
  if outcome.dropped:
    reasons = [f'{name}: {reason}' for name, reason in outcome.dropped]
    blocks += [page.Heading('Dropped'), page.Items(reasons)]
  return page.markdown(title, blocks)


def summary(outcome: Outcome, jobs: int = 1) -> list[str]:
  """What the sweep costs, and what its numbers rest on."""
  rows = outcome.rows
  flops = [row.one.spent() for row in rows]
  out = [
    f'{len(rows)} cells, {len(outcome.dropped)} dropped; '
    f'{number(sum(flops), 3)} training FLOPs, {number(max(flops), 3)} of them '
    'in the largest cell.',
    _hours(rows, jobs),
  ]
  out += _one_sided(rows)
  out += [f'{what}: {source}.' for what, source in outcome.sources]
  return out


def _hours(rows, jobs) -> str:
  known = [row.hours for row in rows if row.hours is not None]
  if len(known) < len(rows):
    return 'time to train: unknown.'
  # A cell is not shared between jobs.
  total = max(sum(known) / jobs, max(known))
  at_once = f' with {jobs} cells at once' if jobs > 1 else ''
  return (
    f'{duration(3600 * total)} of training{at_once}, '
    f'{duration(3600 * max(known))} of it for the longest cell.'
  )


def _one_sided(rows: list[Row]) -> list[str]:
  """Grids that do not enclose the best size: their parabola has no vertex."""
  if any(row.best is None or row.one.budget is None for row in rows):
    return []
  best = {row.one.cell.name: row.best for row in rows}
  of_laws = [row.one for row in rows if row.one.role != ROLE]
  out = []
  for (variant, budget), cells in groups(of_laws).items():
    ratios = {one.size / best[one.cell.name] for one in cells}
    if len(ratios) > 1 and (max(ratios) < 1 or min(ratios) > 1):
      side = 'below' if max(ratios) < 1 else 'above'
      middle = best[cells[0].cell.name]
      out.append(
        f'{variant} at {number(budget, 2)}: all sizes lie {side} the best one '
        f'expected, {count(middle)}.'
      )
  return out


def _table(rows: list[Row]) -> page.Table:
  """A line for each cell; columns that nobody asked for are left out."""
  columns = {
    'cell': lambda row: row.one.cell.name,
    'budget (FLOPs)': lambda row: number(row.one.budget, 3),
    'spent': lambda row: percent(row.one.error_frac()),
    'steps': lambda row: str(row.one.steps()),
    'batch (tokens)': lambda row: count(row.one.step_tokens()),
    'peak rate': lambda row: number(row.one.learning_rate, 3),
    'N': lambda row: count(row.one.size),
    'D': lambda row: count(row.one.tokens()),
    'D / N': lambda row: number(row.one.tokens() / row.one.size, 3),
    'N / N*': lambda row: number(row.best and row.one.size / row.best, 3),
    'hours': lambda row: number(row.hours, 3),
    'GiB per chip': _gib,
  }
  lines = {name: [cell(row) for row in rows] for name, cell in columns.items()}
  lines = {name: v for name, v in lines.items() if set(v) != {'-'}}
  return page.Table(tuple(lines), list(zip(*lines.values(), strict=True)))


def _gib(row: Row) -> str:
  if row.memory is None:
    return '-'
  needed, limit = row.memory
  return f'{needed / 2**30:.1f} of {limit / 2**30:.1f}'
