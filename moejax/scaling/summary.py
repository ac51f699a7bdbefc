"""The plain-language top of a scaling report, computed from its numbers."""

from __future__ import annotations

import numpy as np

from moejax.page import count, number, span
from moejax.scaling import claims
from moejax.scaling.analysis import Analysis
from moejax.scaling.leverage import Leverage


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
    out += claims.trend_findings(a)
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
  return f'{text} ({l.extrapolation}).' if l.extrapolation else f'{text}.'


def _between(l: Leverage) -> str:
  near = l.interval
  return f' (95 % {span(near.low95, near.high95, 3)})' if near else ''


def _held_out(a: Analysis) -> list[str]:
  if not a.held_out:
    return []
  each = ', '.join(
    f'{h.variant} {100 * np.abs(h.errors).mean():.2f} %' for h in a.held_out
  )
  text = (
    'Fitted without the largest budget, the parametric law predicts its cells '
    f'with a mean error of {each} of the loss.'
  )
  if a.noise is not None:
    floor = np.mean([h.noise(a.noise.deviation) for h in a.held_out])
    text += (
      f' Seeds alone would make it {100 * floor:.2f} % for a law without error.'
    )
  return [f'{text} {noise_text(a)}']


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
