"""Laws drawn beyond the budgets that were run."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moejax.scaling import forms, ticks
from moejax.scaling.ahead import FACTORS
from moejax.scaling.analysis import Analysis
from moejax.scaling.plots.style import (
  GUIDE,
  bars,
  colours,
  markers,
  plain,
  styled,
)


@styled
def ahead(a: Analysis) -> Figure:
  """Least loss by the surface of each variant, to 100 times the budget."""
  figure = Figure(figsize=(7.4, 4.5), layout='constrained')
  axes = figure.subplots()
  colour = colours(a.variants)
  marker = dict(zip(a.variants, markers(a), strict=True))
  x = np.geomspace(a.budgets[0], a.budgets[-1] * max(FACTORS) * 1.4, 60)
  for variant, methods in a.surfaces.items():
    _law(axes, x, methods[0], a.costs[variant], colour[variant])
  for variant in a.variants:
    hue = colour[variant]
    mine = a.of(variant)
    axes.plot(
      [p.flops for p in mine], [p.loss for p in mine], marker[variant], ms=6,
      color=hue, zorder=4, label=variant,
    )  # fmt: skip
    for one in (o for c in a.choices for o in c.order if o.variant == variant):
      axes.plot(
        one.flops, one.loss, marker[variant], ms=6.5, color=hue, mfc='white',
        mew=1.4, zorder=5,
      )  # fmt: skip
      if one.intervals[2] is not None:
        bars(
          axes, one.flops, one.intervals[2].low95, one.intervals[2].high95, hue
        )
  axes.axvspan(
    a.budgets[0] / 1.3, a.budgets[-1] * 1.3, color=GUIDE, alpha=0.15, lw=0,
    zorder=0, label='sampled',
  )  # fmt: skip
  axes.plot([], [], 'o', color='#566173', mfc='white', label='predicted')
  ticks.logged(axes, 'x', [x[0] / 1.4, x[-1]], 0.01, ticks.power_label)
  low, high = axes.get_ylim()
  ticks.logged(axes, 'y', [low, high], 0.0, plain)
  axes.set_xlabel('training compute C (FLOPs)')
  axes.set_ylabel('least validation loss (nats per token)')
  axes.legend(loc='upper right')
  return figure


def _law(axes, x, surface, cost, hue) -> None:
  best = forms.optimum_if_any(surface.theta, x, cost)
  if best is None:
    return
  axes.plot(x, best[2], '-', color=hue, zorder=3)
  drawn = [forms.optimum_if_any(theta, x, cost) for theta in surface.drawn()]
  drawn = [d[2] for d in drawn if d is not None]
  if len(drawn) > 20:
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    axes.fill_between(x, low, high, color=hue, alpha=0.14, lw=0, zorder=2)
