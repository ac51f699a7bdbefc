"""A plan as markdown."""

from __future__ import annotations

from collections.abc import Sequence

from moejax.aot.report import GIB, Report
from moejax.aot.topology import Machine
from moejax.page import markdown_table
from moejax.plan import traffic
from moejax.plan.cost import ASSUMPTIONS, Cost
from moejax.plan.meshes import Left

SHOWN = 20
OWN = '(config)'


def ranked(costs: Sequence[Cost], own: Cost | None, shown: int = SHOWN) -> str:
  """The best of those that fit, and the config's own wherever it is."""
  head = (
    '#', 'mesh', 'exchange', 'memory GiB', 'TFLOPs', 'gather GiB',
    'reduce GiB', 'exchange GiB', 'step ms', 'bound by',
  )  # fmt: skip
  rows = [
    (i, cost) for i, cost in enumerate(costs, 1) if i <= shown or cost is own
  ]
  lines = [_row(i, cost, cost is own) for i, cost in rows]
  if own is not None and not any(cost is own for cost in costs):
    lines.append(_row('does not fit', own, True))
  return markdown_table(head, lines)


def _row(place, cost, is_own):
  return (
    place,
    cost.choice.shown() + (f' {OWN}' if is_own else ''),
    cost.choice.exchange,
    f'{cost.total / GIB:.2f}',
    f'{cost.flops / 1e12:.3g}',
    *(f'{cost.sent[kind] / GIB:.3f}' for kind in traffic.KINDS),
    f'{cost.step_seconds * 1e3:.3g}',
    cost.bound,
  )


def left_out(left: dict[str, Left], too_large: Sequence[Cost]) -> str:
  """Why the others are not among them, counted."""
  rows = [
    (found.count, found.example)
    for found in sorted(left.values(), key=lambda found: -found.count)
  ]
  if too_large:
    least = min(cost.total for cost in too_large)
    rows.append(
      (
        len(too_large),
        f'too large: {least / GIB:.2f} GiB and more, of '
        f'{too_large[0].limit / GIB:.2f} GiB (each exchange counted).',
      )
    )
  return (
    markdown_table(('left out', 'why, as of one of them'), rows) if rows else ''
  )


def compiled(pairs: Sequence[tuple[Cost, Report | str]]) -> str:
  """What was predicted beside what a compiler says; a refusal in words.

  Programs hold the loop of further rounds of an exchange: it is predicted too.
  """
  head = ('mesh', 'exchange', 'of a device', 'predicted', 'compiled', 'ratio')
  lines = []
  for cost, report in pairs:
    names = cost.choice.shown(), cost.choice.exchange
    if isinstance(report, str):
      lines.append((*names, 'refused', '', report, ''))
      continue
    for what, guess, true in compared(cost, report):
      ratio = f'{guess / true:.2f}' if true else ''
      lines.append((*names, what, f'{guess:.4g}', f'{true:.4g}', ratio))
  return markdown_table(head, lines)


def compared(
  cost: Cost, report: Report
) -> list[tuple[str, float, float | None]]:
  """(what, predicted, compiled) of memory, bytes sent and moved, FLOPs."""
  rows = [('memory GiB', cost.total / GIB, report.memory.total / GIB)]
  if report.refused:
    return rows
  sent = traffic.by_kind(report.collective_bytes)
  rows += [(f'{k} GiB', cost.sent[k] / GIB, sent[k] / GIB) for k in sent]
  rows.append(('moved GiB', cost.moved / GIB, report.memory_bytes / GIB))
  return [*rows, ('TFLOPs', cost.flops / 1e12, report.flops / 1e12)]


def notes(machine: Machine) -> str:
  """What the figures rest on."""
  text = ASSUMPTIONS + machine.rates()[1][0].upper() + machine.rates()[1][1:]
  if (
    machine.chip.platform == 'cuda' and machine.chips > machine.devices_per_host
  ):
    text += '; links between nodes are slower, which is not in the step'
  return text + '.'
