"""Sentences on trends of leverage, on rates and on what lies ahead."""

from __future__ import annotations

from moejax.page import count, count_span, number, span
from moejax.scaling import resample, trends
from moejax.scaling.ahead import Ahead, Choice
from moejax.scaling.analysis import Analysis
from moejax.scaling.trends import Trend

VERBS = {1: 'rises', -1: 'falls'}
AXES = {
  trends.COMPUTE: 'compute',
  trends.ACTIVATION: 'the activation ratio',
  trends.GRANULARITY: 'granularity',
}


def trend_findings(a: Analysis) -> list[str]:
  """Does leverage move with compute, activation ratio and granularity?

  One sentence per axis, over all variants or budgets where there are several;
  `tables.trend_table` has each.
  """
  out = []
  for axis in (trends.COMPUTE, trends.ACTIVATION, trends.GRANULARITY):
    mine = [t for t in a.trends if t.axis == axis]
    if mine:
      out.append(_trend(mine[-1], [t for t in mine if t.where != 'all']))
  return out


def _trend(t: Trend, each: list[Trend]) -> str:
  over = f' in {t.where}' if t.where != 'all' else ''
  text = (
    f'Leverage against {t.axis}{over}: slope {_slope(t.slope, t.interval)} per '
    f'decade (log10 of both), from {t.points} leverages: {verdict(t)}.'
  )
  if t.sign:
    text += f' {_times(t)}'
  if t.inside is not None:
    text += (
      f' Without the {t.extrapolated} extrapolated beyond the budgets of '
      f'dense: {_slope(*t.inside)}.'
    )
  elif t.extrapolated:
    text += f' {t.extrapolated} of them are extrapolated.'
  if len(each) > 1:
    parts = '; '.join(f'{e.where} {_slope(e.slope, e.interval)}' for e in each)
    text += f' Each: {parts}.'
  return text


def verdict(t: Trend) -> str:
  """What a trend shows."""
  if t.interval is None:
    return 'without an interval this is no trend'
  if not t.sign:
    return 'no trend is shown, since the 95 % interval holds 0'
  return f'it {VERBS[t.sign]} as {AXES[t.axis]} rises'


def _times(t: Trend) -> str:
  near = t.interval
  if t.axis == trends.COMPUTE:
    factor, words = 10.0, 'Ten times the compute multiplies it'
  elif t.axis == trends.ACTIVATION:
    factor, words = 0.25, 'A quarter of the ratio multiplies it'
  else:
    factor, words = 2.0, 'Twice the granularity multiplies it'
  ends = sorted((factor**near.low95, factor**near.high95))
  return f'{words} by {number(factor**t.slope, 3)} {span(*ends, 3)}.'


def _slope(slope: float, near: resample.Interval | None) -> str:
  return f'{signed(slope)} {_signed_span(near)}'.strip()


def _signed_span(near) -> str:
  return f'[{signed(near.low95)}, {signed(near.high95)}]' if near else ''


def signed(value: float) -> str:
  """A slope, with its sign."""
  return f'{value:+.3f}'


def rate_findings(a: Analysis) -> list[str]:
  """Best learning rate and batch of each map, and its edges."""
  out = []
  for m in a.maps:
    text = (
      f'{m.variant} at {number(m.budget, 2)} FLOPs and {count(m.size)} '
      f'parameters: the best peak learning rate is {number(m.rate, 2)} at a '
      f'batch of {count(m.batch)} tokens; within 0.25 % of the least loss lie '
      f'rates of {number(m.rates[m.near].min(), 2)} to '
      f'{number(m.rates[m.near].max(), 2)} and batches of '
      f'{count(m.batches[m.near].min())} to {count(m.batches[m.near].max())}.'
    )
    for why in m.edges.values():
      text += f' Edge: {why}.'
    out.append(text)
  return out


def next_steps(a: Analysis) -> list[str]:
  """What to run at 10 and 100 times the largest budget, and before that."""
  out = [_choice(c) for c in a.choices]
  if not out:
    out.append(
      'No variant has a law that can be carried to a larger budget: run two '
      'budgets and four sizes at least.'
    )
  return out + _before(a)


def _choice(c: Choice) -> str:
  first = c.order[0]
  text = (
    f'At {c.factor} times the largest budget ({number(first.flops, 3)} '
    f'training FLOPs): {first.variant}, {count(first.size)}'
    f'{_counts(first.intervals[0])} parameters on {count(first.tokens)}'
    f'{_counts(first.intervals[1])} tokens, predicted loss '
    f'{number(first.loss)}{_between(first.intervals[2])}{_rates(first)}.'
  )
  if len(c.order) > 1:
    second = c.order[1]
    text += (
      f' Next is {second.variant} with {number(second.loss)}'
      f'{_between(second.intervals[2])}'
    )
    if c.share is None:
      text += '; without intervals this is no order.'
    elif c.separated:
      text += f': the order holds in {c.share:.0%} of draws'
      apart = _apart(first.intervals[2], second.intervals[2])
      text += f', the 95 % intervals {"are apart" if apart else "overlap"}.'
    else:
      text += (
        f': the data do not separate them (first in {c.share:.0%} of draws); '
        'run both, or more seeds at the largest budget.'
      )
  doubts = [f'{o.variant}: {"; ".join(o.doubts)}' for o in c.order if o.doubts]
  if doubts:
    text += f' The data do not support this number: {". ".join(doubts)}.'
  return text


def _apart(one, other) -> bool:
  if one is None or other is None:
    return False
  return one.high95 < other.low95 or other.high95 < one.low95


def _between(near) -> str:
  return f' {span(near.low95, near.high95)}' if near else ''


def _counts(near) -> str:
  return f' {count_span(near.low95, near.high95)}' if near else ''


def _rates(one: Ahead) -> str:
  parts = []
  for words, law, shown in (
    ('peak learning rate', one.rate, lambda v: number(v, 2)),
    ('batch', one.batch, lambda v: f'{count(v)} tokens'),
  ):
    if law is not None:
      told = f'{words} {shown(law(one.flops))}'
      if law.fit is None:
        told += f' (as searched at {number(law.budgets[0], 2)}, unscaled)'
      else:
        told += f' (a line through {len(law.budgets)} budgets)'
      parts.append(told)
  if not parts:
    return '; learning rate and batch were not searched for it'
  return '; ' + ', '.join(parts)


def _before(a: Analysis) -> list[str]:
  """What to run first, since the laws hang on it."""
  out = []
  flagged = [p for p in a.parabolas if not p.usable]
  if flagged:
    each = ', '.join(f'{p.variant} at {number(p.budget, 2)}' for p in flagged)
    out.append(f'First add sizes where no vertex lies inside: {each}.')
  if a.noise is None:
    out.append('First repeat some cells with other seeds: noise is unknown.')
  far = [l for l in a.leverages if 'beyond' in (l.extrapolation or '')]
  if far:
    out.append(
      f'To measure the leverages that are extrapolated, run {a.dense} at '
      f'{number(max(l.dense_flops for l in far if l.dense_flops), 2)} FLOPs.'
    )
  edges = [m for m in a.maps if m.edges]
  if edges:
    each = '; '.join(
      f'{m.variant} at {number(m.budget, 2)}: {", ".join(m.edges.values())}'
      for m in edges
    )
    out.append(f'Widen the search of learning rates and batches: {each}.')
  return out
