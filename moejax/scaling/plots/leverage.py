"""Efficiency leverage against what it may depend on."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from moejax.scaling import ticks
from moejax.scaling.analysis import Analysis
from moejax.scaling.plots.style import (
  GUIDE,
  bars,
  colours,
  compute_axis,
  markers,
  ratio,
  styled,
)

GREY = '#566173'


@styled
def leverage(a: Analysis) -> Figure:
  """Leverage against activation ratio, compute, granularity, and its law."""
  panels = [_by_activation, _by_compute]
  if len(_grains(a)) > 1:
    panels.append(_by_granularity)
  if a.leverage_law is not None:
    panels.append(_predicted)
  columns = 2 if len(panels) != 3 else 3
  rows = -(-len(panels) // columns)
  figure = Figure(figsize=(4.7 * columns, 4.1 * rows), layout='constrained')
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes, draw in zip(grid, panels, strict=True):
    draw(axes, a)
  return figure


def _shown(a: Analysis):
  return [l for l in a.leverages if l.value is not None and l.activation > 0]


def _grains(a: Analysis):
  return sorted({
    l.granularity for l in _shown(a)
    if l.granularity > 0 and l.variant != a.dense
  })  # fmt: skip


def _point(axes, at, one, hue, marker='o') -> None:
  face = 'white' if one.notes else hue
  axes.plot(
    at, one.value, marker, ms=6.5, color=hue, mfc=face, mew=1.5, zorder=4
  )
  if one.interval is not None:
    bars(axes, at, one.interval.low95, one.interval.high95, hue)


def _hollow(axes) -> None:
  axes.plot(
    [], [], 'o', color=GREY, mfc='white', label='extrapolated or flagged'
  )


def _height(axes, of) -> None:
  """The axis of leverage, with a line where dense is as good."""
  axes.axhline(1, color=GUIDE, lw=1, ls=':', zorder=1)
  values = [1.0, *(l.value for l in of)]
  near = [l.interval for l in of if l.interval is not None]
  values += [end for n in near for end in (n.low95, n.high95)]
  ticks.logged(axes, 'y', values, 0.1, lambda v: f'{v:.3g}×')


def _budget_hues(a: Analysis):
  scale = matplotlib.colormaps['viridis']
  last = max(1, len(a.budgets) - 1)
  return {b: scale(0.05 + 0.8 * i / last) for i, b in enumerate(a.budgets)}


def _by_activation(axes, a: Analysis) -> None:
  shown = _shown(a)
  for place, (budget, hue) in enumerate(_budget_hues(a).items()):
    mine = sorted(
      (l for l in shown if l.budget == budget), key=lambda l: l.activation
    )
    if not mine:
      continue
    # Budgets sit side by side, so that their error bars can be read.
    shift = 1.045 ** (place - (len(a.budgets) - 1) / 2)
    x = [l.activation * shift for l in mine]
    axes.plot(x, [l.value for l in mine], '-', color=hue, lw=1.2, zorder=2)
    for at, one in zip(x, mine, strict=True):
      _point(axes, at, one, hue)
    axes.plot([], [], 'o-', color=hue, label=f'C = {ticks.power_label(budget)}')
  if any(l.notes for l in shown):
    _hollow(axes)
  ratios = sorted({l.activation for l in shown})
  ticks.logged(axes, 'x', ratios or [0.1, 1], 0.1)
  _height(axes, shown)
  axes.set_xticks(ratios, [ratio(r) for r in ratios])
  axes.set_xlabel('activation ratio (active / total experts)')
  axes.set_ylabel(f'efficiency leverage (compute of {a.dense} / own)')
  axes.legend(loc='upper right')


def _by_compute(axes, a: Analysis) -> None:
  colour = colours(a.variants)
  shown = [l for l in a.leverages if l.value is not None]
  for place, (marker, variant) in enumerate(
    zip(markers(a), a.variants, strict=True)
  ):
    mine = [l for l in shown if l.variant == variant]
    shift = 1.04 ** (place - (len(a.variants) - 1) / 2)
    for one in mine:
      _point(axes, one.flops * shift, one, colour[variant], marker)
    label = variant
    slope = _slope(a, variant)
    if slope is not None and variant != a.dense:
      label = f'{variant}:  $C^{{{slope.slope:+.2f}}}$'
      x = np.array([min(l.flops for l in mine), max(l.flops for l in mine)])
      middle = np.exp(np.mean(np.log([[l.flops, l.value] for l in mine]), 0))
      line = middle[1] * (x / middle[0]) ** slope.slope
      axes.plot(x, line, '-', color=colour[variant], lw=1.2, zorder=2)
    axes.plot([], [], marker, color=colour[variant], label=label)
  compute_axis(axes, a)
  _height(axes, shown)
  axes.set_ylabel(f'efficiency leverage (compute of {a.dense} / own)')
  axes.legend(loc='upper left', fontsize=8.5)
  # The legend needs the corner that growing leverages leave free.
  low, high = axes.get_ylim()
  axes.set_ylim(low, high * (high / low) ** 0.25)


def _slope(a: Analysis, variant):
  found = [t for t in a.trends if t.axis == 'compute' and t.where == variant]
  return found[0] if found else None


def _by_granularity(axes, a: Analysis) -> None:
  shown = [l for l in _shown(a) if l.granularity > 0 and l.variant != a.dense]
  ratios = sorted({l.activation for l in shown}, reverse=True)
  for budget, hue in _budget_hues(a).items():
    for marker, active in zip('osD^vPX', ratios, strict=False):
      mine = sorted(
        (l for l in shown if (l.budget, l.activation) == (budget, active)),
        key=lambda l: l.granularity,
      )
      axes.plot(
        [l.granularity for l in mine], [l.value for l in mine], '-',
        color=hue, lw=1.2, zorder=2,
      )  # fmt: skip
      for one in mine:
        _point(axes, one.granularity, one, hue, marker)
    axes.plot([], [], '-', color=hue, label=f'C = {ticks.power_label(budget)}')
  for marker, active in zip('osD^vPX', ratios, strict=False):
    axes.plot([], [], marker, color=GREY, label=f'A = {ratio(active)}')
  ticks.logged(axes, 'x', _grains(a), 0.1)
  _height(axes, shown)
  axes.set_xticks(_grains(a), [f'{g:.3g}' for g in _grains(a)])
  axes.set_xlabel('granularity')
  axes.set_ylabel(f'efficiency leverage (compute of {a.dense} / own)')
  axes.legend(loc='best', fontsize=8.5)


def _predicted(axes, a: Analysis) -> None:
  law = a.leverage_law
  colour = colours(a.variants)
  marker = dict(zip(a.variants, markers(a), strict=True))
  values = []
  rows = zip(
    law.points, law.predicted, law.intervals, law.held_out, strict=True
  )
  for one, predicted, near, held in rows:
    hue = colour[one.variant]
    axes.plot(
      one.value, predicted, marker[one.variant], ms=6.5, color=hue,
      mfc='white' if held else hue, mew=1.5, zorder=4,
    )  # fmt: skip
    values += [one.value, predicted]
    if near is not None:
      bars(axes, one.value, near.low95, near.high95, hue)
      values += [near.low95, near.high95]
    if one.interval is not None:
      ends = one.interval.low95, one.interval.high95
      axes.hlines(predicted, *ends, color=hue, lw=1.1, zorder=3)
      values += ends
  ticks.logged(axes, 'x', values, 0.06, lambda v: f'{v:.3g}×')
  ticks.logged(axes, 'y', values, 0.06, lambda v: f'{v:.3g}×')
  ends = axes.get_xlim()
  axes.plot(ends, ends, '-', color=GUIDE, lw=1, zorder=1)
  for variant in dict.fromkeys(l.variant for l in law.points):
    axes.plot([], [], marker[variant], color=colour[variant], label=variant)
  if law.held_out.any():
    axes.plot(
      [], [], 'o', color=GREY, mfc='white',
      label='largest budget, not seen by the fit',
    )  # fmt: skip
  axes.set_xlabel('measured leverage')
  axes.set_ylabel('leverage by the joint law')
  axes.legend(loc='lower right', fontsize=8.5)
