"""Tables of trends, of rates and of what lies ahead."""

from __future__ import annotations

from moejax import page
from moejax.page import count, count_span, number, span
from moejax.scaling import claims
from moejax.scaling.analysis import Analysis


def trend_table(a: Analysis) -> page.Table:
  """Slopes of log leverage, each with what was held still."""
  header = (
    'leverage against', 'in', 'leverages', 'extrapolated', 'slope', '80 %',
    '95 %', 'slope without extrapolated', '95 %', 'says',
  )  # fmt: skip
  rows = []
  for t in a.trends:
    near = t.interval
    again, inside = t.inside or (None, None)
    says = claims.verdict(t)
    if t.lost > 0.01:
      says += f'; {t.lost:.0%} of draws have no finite leverage'
    rows.append((
      t.axis, t.where, str(t.points), str(t.extrapolated),
      claims.signed(t.slope),
      span(near.low80, near.high80, 3) if near else '-',
      span(near.low95, near.high95, 3) if near else '-',
      '-' if again is None else claims.signed(again),
      span(inside.low95, inside.high95, 3) if inside else '-', says,
    ))  # fmt: skip
  return page.Table(header, rows)


def ahead_table(a: Analysis) -> page.Table:
  """The best model of each variant beyond the largest budget."""
  header = (
    'times the largest budget', 'FLOPs', 'rank', 'variant', 'N', '95 %', 'D',
    '95 %', 'loss', '95 %', 'by', 'N, vertices', 'D, vertices',
    'loss, frontier', 'beyond (in sampled ranges)', 'peak learning rate',
    'batch (tokens)', 'not supported because',
  )  # fmt: skip
  rows = []
  for choice in a.choices:
    for rank, o in enumerate(choice.order, 1):
      size, tokens, loss = o.intervals
      rows.append((
        str(o.factor), number(o.flops, 3), str(rank), o.variant, count(o.size),
        _counts(size), count(o.tokens), _counts(tokens), number(o.loss),
        span(loss.low95, loss.high95) if loss else '-', o.by,
        count(o.other[0]), count(o.other[1]), number(o.other[2]),
        number(o.beyond, 2),
        number(o.rate(o.flops), 2) if o.rate else '-',
        count(o.batch(o.flops)) if o.batch else '-', '; '.join(o.doubts) or '-',
      ))  # fmt: skip
  return page.Table(header, rows)


def _counts(near) -> str:
  return count_span(near.low95, near.high95) if near else '-'


def rate_table(a: Analysis) -> page.Table:
  """The optimum of each map of learning rate and batch."""
  header = (
    'variant', 'budget (FLOPs)', 'N', 'cells', 'least loss tried', 'at rate',
    'at batch', 'best rate', 'best batch', 'loss there', 'by quadratic',
    'edge warning',
  )  # fmt: skip
  rows = []
  for m in a.maps:
    rows.append((
      m.variant, number(m.budget, 3), count(m.size), str(len(m.losses)),
      number(m.losses[m.least]), number(m.rates[m.least], 3),
      count(m.batches[m.least]), number(m.rate, 3), count(m.batch),
      number(m.loss), ', '.join(m.fitted) or 'no: least cell',
      '; '.join(m.edges.values()) or '-',
    ))  # fmt: skip
  return page.Table(header, rows)
