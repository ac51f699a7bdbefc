"""The plain-language top of a scaling report, computed from its numbers."""

from __future__ import annotations

import math

import numpy as np

from moejax.scaling import resample
from moejax.scaling.analysis import Analysis
from moejax.scaling.leverage import Leverage
from moejax.scaling.page import count, number, percent, span

# A mean error of the loss below this is not worth a doubt.
NEGLIGIBLE_FRAC = 1e-3


def findings(a: Analysis) -> list[str]:
  """What the sweep says, one sentence or two each."""
  out = [_coverage(a), _best(a)]
  if a.leverages:
    top = max(l.budget for l in a.leverages)
    out += [
      _leverage(l, a.dense)
      for l in a.leverages
      if l.budget == top and l.variant != a.dense
    ]
    out += _trends(a)
  out += _held_out(a)
  return out


def _coverage(a: Analysis) -> str:
  total = len(a.runs) + len(a.excluded)
  budgets = a.budgets
  spread = number(budgets[0], 2)
  if len(budgets) > 1:
    spread = f'{spread} to {number(budgets[-1], 2)}'
  text = (
    f'{len(a.runs)} of {total} runs were fitted: '
    f'{_plural(a.variants, "variant")} ({", ".join(a.variants)}) '
    f'at {_plural(budgets, "budget")} of {spread} training FLOPs.'
  )
  if a.excluded:
    text += (
      f' {_plural(a.excluded, "row")} failed or could not be used and '
      f'{"is" if len(a.excluded) == 1 else "are"} listed below.'
    )
  return text


def _plural(items, word) -> str:
  return f'{len(items)} {word}{"" if len(items) == 1 else "s"}'


def _best(a: Analysis) -> str:
  top = max(a.budgets)
  order = sorted(
    (p for p in a.parabolas if p.budget == top), key=lambda p: p.loss
  )
  first = order[0]
  text = (
    f'At the largest budget ({number(top, 2)} FLOPs) {first.variant} is best: '
    f'loss {number(first.loss)} nats per token at {count(first.size)} '
    f'parameters and {count(first.tokens)} tokens'
  )
  if not first.usable:
    text += ' (the least sampled loss: its parabola has no usable vertex)'
  if len(order) == 1:
    return f'{text} (no other variant finished there).'
  second = order[1]
  text += (
    f', {number(second.loss - first.loss, 2)} below {second.variant}, the next.'
  )
  if first.draws is None or second.draws is None:
    return f'{text} No interval could be computed.'
  ahead = float(np.mean(first.draws.loss < second.draws.loss))
  if ahead < 0.95:
    return f'{text} The data do not separate the two ({ahead:.0%} of draws).'
  return f'{text} The order holds in {ahead:.0%} of bootstrap draws.'


def _leverage(l: Leverage, dense: str) -> str:
  if l.value is None:
    return (
      f'{l.variant}: no finite efficiency leverage, since its loss lies at or '
      f'below the fitted asymptote of {dense}.'
    )
  text = (
    f'{l.variant}: efficiency leverage {number(l.value, 3)}{_between(l)} at '
    f'{number(l.budget, 2)} FLOPs; {dense} is estimated to need that many '
    'times its compute for the same loss'
  )
  beyond = [n for n in l.notes if n.startswith('extrapolated')]
  return f'{text} ({beyond[0]}).' if beyond else f'{text}.'


def _between(l: Leverage) -> str:
  near = l.interval
  return f' (95 % {span(near.low95, near.high95, 3)})' if near else ''


def _trends(a: Analysis) -> list[str]:
  out = []
  for variant in a.variants:
    mine = [l for l in a.leverages if l.variant == variant and l.value]
    if variant == a.dense or len(mine) < 2:
      continue
    first, last = mine[0], mine[-1]
    text = (
      f'{variant}: leverage {number(first.value, 3)} at '
      f'{number(first.budget, 2)} and {number(last.value, 3)} at '
      f'{number(last.budget, 2)}'
    )
    if _apart(first.interval, last.interval):
      move = 'grows' if last.value > first.value else 'falls'
      out.append(f'{text} FLOPs: it {move}; the 95 % intervals are apart.')
    elif first.interval is None or last.interval is None:
      out.append(f'{text} FLOPs; without intervals this is no trend.')
    else:
      out.append(
        f'{text} FLOPs; the 95 % intervals overlap, so no trend with '
        'compute is shown.'
      )
  return out


def _apart(
  one: resample.Interval | None, other: resample.Interval | None
) -> bool:
  if one is None or other is None:
    return False
  return one.high95 < other.low95 or other.high95 < one.low95


def _held_out(a: Analysis) -> list[str]:
  if not a.held_out:
    return []
  each = ', '.join(
    f'{h.variant} {100 * np.abs(h.errors).mean():.2f} %' for h in a.held_out
  )
  return [
    f'Fitted without the largest budget, the parametric law predicts its runs '
    f'with a mean error of {each} of the loss. {noise_text(a)}'
  ]


def noise_text(a: Analysis) -> str:
  """The seed noise, or that there is none to compare with."""
  if a.noise is None:
    return (
      'No cell was run with more than one seed, so there is no seed noise to '
      'compare with.'
    )
  return (
    f'Seed noise is {100 * a.noise.deviation:.2f} % (one standard deviation, '
    f'{_plural(range(a.noise.cells), "cell")} with repeats, '
    f'{a.noise.freedom} degrees of freedom).'
  )


def doubts(a: Analysis) -> list[str]:
  """What not to believe, each with its reason."""
  out = []
  flagged = [p for p in a.parabolas if p.flags]
  if flagged:
    each = '; '.join(
      f'{p.variant} at {number(p.budget, 2)} ({", ".join(p.flags)})'
      for p in flagged
    )
    out.append(
      f'{len(flagged)} of {len(a.parabolas)} vertices are flagged: {each}.'
    )
  out += _extrapolations(a)
  out += _asymptotes(a)
  out += _biases(a)
  decades = math.log10(a.budgets[-1] / a.budgets[0])
  if len(a.budgets) > 1:
    out.append(
      f'The budgets span {decades:.1f} decades: exponents and intervals '
      'describe that range, and say little of what lies far beyond.'
    )
  out.append(
    'Intervals are residual bootstraps: they carry the noise of the runs, not '
    'errors of the form of a law, of untuned learning rates or of the data.'
  )
  if a.noise is None:
    out.append(noise_text(a))
  return out


def _extrapolations(a: Analysis) -> list[str]:
  far = [
    l for l in a.leverages if any(n.startswith('extrapolated') for n in l.notes)
  ]
  if not far:
    return []
  each = ', '.join(f'{l.variant} at {number(l.budget, 2)}' for l in far)
  text = (
    f'{len(far)} of {len(a.leverages)} leverages compare with {a.dense} '
    f'outside its budgets: {each}.'
  )
  law = a.frontiers[a.dense]
  if 'E' in law.fit.pinned:
    text += (
      ' The frontier is a pure power law there; if losses flatten, the true '
      'leverage beyond the largest budget is higher.'
    )
  return [text]


def _asymptotes(a: Analysis) -> list[str]:
  loose = []
  for variant, methods in a.surfaces.items():
    found = methods[0]
    near = None
    if found.draws is not None:
      near = resample.interval(found.draws[:, found.form.parameters.index('E')])
    if found.theta['E'] == 0:
      loose.append(f'{variant} (0)')
    elif near is not None and near.high95 - near.low95 > 0.2 * found.theta['E']:
      loose.append(
        f'{variant} {number(found.theta["E"], 3)} '
        f'{span(near.low95, near.high95, 3)}'
      )
  if not loose:
    return []
  return [
    f'The asymptote E is loose: {"; ".join(loose)}. Do not read it as the '
    'entropy of the data.'
  ]


def _biases(a: Analysis) -> list[str]:
  out = []
  for h in a.held_out:
    one_sided = len(h.errors) > 2 and len(set(np.sign(h.errors))) == 1
    noise = a.noise.deviation if a.noise else NEGLIGIBLE_FRAC
    one_sided = one_sided and abs(h.errors.mean()) > noise
    if one_sided:
      side = 'high' if h.errors[0] > 0 else 'low'
      out.append(
        f'{h.variant}: all held-out predictions are too {side} (mean '
        f'{percent(float(h.errors.mean()))}), a sign that the law bends '
        'between the budgets or that one rung is tuned differently.'
      )
  return out
