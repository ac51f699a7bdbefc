"""Tables of a scaling report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moejax import page
from moejax.page import count, count_span, number, percent, span
from moejax.scaling import fit, resample, runs
from moejax.scaling.analysis import Analysis

SHOWN_VALUES = 6


def run_table(a: Analysis) -> page.Table:
  """Every fitted run."""
  header = (
    'run', 'variant', 'budget (FLOPs)', 'N', 'total parameters', 'tokens D',
    'D / N', 'FLOPs spent', 'loss', 'train loss', 'seed', 'seconds', 'tokens/s',
  )  # fmt: skip
  rows = []
  order = {variant: place for place, variant in enumerate(a.variants)}
  ordered = sorted(
    a.runs, key=lambda r: (r.budget, order[r.variant], r.size, r.seed)
  )
  for r in ordered:
    rows.append((
      r.name, r.variant, number(r.budget, 3), count(r.size),
      count(_float(r.row.get('params_total'))), count(r.tokens),
      number(r.tokens / r.size, 3), number(r.flops), number(r.loss, 5),
      number(_float(r.row.get('loss_train')), 5),
      '-' if r.seed is None else str(r.seed),
      number(_float(r.row.get('seconds')), 3),
      count(_float(r.row.get('tokens_per_s'))),
    ))  # fmt: skip
  return page.Table(header, rows)


def _float(value) -> float | None:
  try:
    return float(value)
  except (TypeError, ValueError):
    return None


def excluded_table(a: Analysis) -> page.Table:
  """Every row that was not fitted, with the reason."""
  rows = [
    (e.name, e.variant, number(e.budget, 3), e.reason) for e in a.excluded
  ]
  return page.Table(('run', 'variant', 'budget (FLOPs)', 'reason'), rows)


def vertex_table(a: Analysis) -> page.Table:
  """The least of each parabola, its flat band, interval and flags."""
  header = (
    'variant', 'budget (FLOPs)', 'sizes', 'runs', 'N*', 'flat band (0.1 %)',
    'N* 95 %', 'D*', 'L*', 'L* 95 %', 'draws with a vertex', 'flags',
  )  # fmt: skip
  rows = []
  for variant in a.variants:
    for p in a.of(variant):
      size = loss = None
      if p.draws is not None:
        size, loss = (
          resample.interval(p.draws.size),
          resample.interval(p.draws.loss),
        )
      rows.append((
        variant, number(p.budget, 3), str(len(np.unique(p.sizes))),
        str(len(p.runs)), count(p.size), count_span(*p.flat) if p.flat else '-',
        count_span(size.low95, size.high95) if size else '-', count(p.tokens),
        number(p.loss), span(loss.low95, loss.high95) if loss else '-',
        '-' if p.draws is None else f'{p.draws.interior.mean():.0%}',
        '; '.join(p.flags) or '-',
      ))  # fmt: skip
  return page.Table(header, rows)


def fits(a: Analysis) -> Iterator[tuple[str, str, fit.Fit, tuple]]:
  """Variant, equation, fit and notes of everything that was fitted."""
  for variant in a.variants:
    for found in a.surfaces.get(variant, ()):
      yield variant, found.form.equation, found, ()
    if variant in a.frontiers:
      law = a.frontiers[variant]
      yield variant, law.fit.form.equation, law.fit, law.notes
    for what, law in a.allocations.get(variant, {}).items():
      letter = 'N*' if what == 'size' else 'D*'
      yield variant, f'{letter} = k C^a', law.fit, law.notes
  law = a.leverage_law
  if law is not None:
    yield 'all sparse', law.fit.form.equation, law.fit, ('all budgets',)
    if law.ahead is not None:
      note = ('without the largest budget',)
      yield 'all sparse', law.fit.form.equation, law.ahead, note


def coefficient_table(a: Analysis) -> page.Table:
  """Every coefficient with its interval; facts of a fit on its first row."""
  header = (
    'variant', 'law', 'method', 'coefficient', 'value', 'std. error', '80 %',
    '95 %', 'restarts agreeing', 'objective', 'n', 'notes',
  )  # fmt: skip
  rows = []
  for variant, law, found, notes in fits(a):
    for place, name in enumerate(found.form.parameters):
      first = place == 0
      facts = ('', '', '', '')
      if first:
        facts = (
          f'{found.agreeing} of {found.restarts}', number(found.objective, 3),
          str(len(found.residuals)), '; '.join((*notes, *found.warnings)),
        )  # fmt: skip
      rows.append((
        variant if first else '', law if first else '',
        found.method if first else '', name, number(found.theta[name]),
        *_errors(found, place, name), *facts,
      ))  # fmt: skip
  return page.Table(header, rows)


def _errors(found: fit.Fit, place: int, name: str) -> tuple[str, str, str]:
  if name in found.pinned:
    return 'pinned', '-', '-'
  drawn = None if found.draws is None else found.draws[:, place]
  near = resample.interval(drawn)
  if near is None:
    return '-', '-', '-'
  return (
    number(near.error, 2),
    span(near.low80, near.high80, 3),
    span(near.low95, near.high95, 3),
  )


def leverage_table(a: Analysis) -> page.Table:
  """Efficiency leverage of every variant and budget."""
  header = (
    'variant', 'activation ratio', 'budget (FLOPs)', 'L*',
    f'FLOPs of {a.dense} at L*', 'leverage', '80 %', '95 %', 'notes',
  )  # fmt: skip
  rows = []
  for variant in a.variants:
    for l in (l for l in a.leverages if l.variant == variant):
      near = l.interval
      rows.append((
        variant, number(l.activation, 3), number(l.budget, 3), number(l.loss),
        number(l.dense_flops, 3), number(l.value, 3),
        span(near.low80, near.high80, 3) if near else '-',
        span(near.low95, near.high95, 3) if near else '-',
        '; '.join(l.notes) or '-',
      ))  # fmt: skip
  return page.Table(header, rows)


def held_out_table(a: Analysis) -> page.Table:
  """Errors at the largest budget of fits that have not seen it."""
  header = (
    'variant', 'budget (FLOPs)', 'trained on (runs)', 'held-out cells', 'seeds',
    'mean error', 'mean size of error', 'the same from seeds alone', 'largest',
    'within 95 %', 'L* measured', 'L* predicted', '95 %', 'L* error',
    'L* error, frontier', 'notes',
  )  # fmt: skip
  rows = []
  for h in a.held_out:
    size = np.abs(h.errors)
    near = h.vertex_interval
    actual = next(p.loss for p in a.of(h.variant) if p.budget == h.budget)
    line = None if h.frontier is None else h.frontier / actual - 1
    least = h.vertex[0] if h.vertex else None
    inside = h.covered(a.noise.deviation) if a.noise else None
    rows.append((
      h.variant, number(h.budget, 3), str(h.trained_on), str(len(h.sizes)),
      f'{h.seeds.mean():.3g}', percent(float(h.errors.mean())),
      f'{100 * size.mean():.2f}%',
      f'{100 * h.noise(a.noise.deviation):.2f}%' if a.noise else '-',
      f'{100 * size.max():.2f}%',
      '-' if inside is None else f'{inside} of {len(h.sizes)}',
      number(actual), number(least),
      span(near.low95, near.high95) if near else '-',
      percent(least / actual - 1 if least else None), percent(line),
      '; '.join(h.warnings) or '-',
    ))  # fmt: skip
  return page.Table(header, rows)


def environment_table(a: Analysis) -> page.Table:
  """Where the runs say they ran; several values are all listed."""
  rows = []
  for key, values in runs.provenance(a.runs):
    shown = ', '.join(values[:SHOWN_VALUES])
    if len(values) > SHOWN_VALUES:
      shown += f' and {len(values) - SHOWN_VALUES} more'
    rows.append((key, shown))
  return page.Table(('field', 'value'), rows)
