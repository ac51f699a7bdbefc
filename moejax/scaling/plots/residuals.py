"""Predictions beside measurements."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moejax.scaling import noise, ticks
from moejax.scaling.analysis import Analysis
from moejax.scaling.plots.style import (
  GUIDE,
  colours,
  compute_axis,
  markers,
  size_label,
  styled,
)


@styled
def residuals(a: Analysis) -> Figure:
  """Predicted against measured loss, and errors by compute and by size."""
  figure = Figure(figsize=(12.6, 4.3), layout='constrained')
  left, middle, right = figure.subplots(1, 3)
  colour = colours(a.variants)
  losses = []
  for marker, variant in zip(markers(a), a.variants, strict=True):
    hue = colour[variant]
    for sizes, flops, measured, predicted, seen in _points(a, variant):
      style = dict(color=hue, mfc=hue if seen else 'white', mew=1.2, ms=5)
      left.plot(measured, predicted, marker, **style, zorder=3)
      errors = 100 * (predicted / measured - 1)
      middle.plot(flops, errors, marker, **style, zorder=3)
      right.plot(sizes, errors, marker, **style, zorder=3)
      losses = [*losses, *measured, *predicted]
    left.plot([], [], marker, color=hue, label=variant)
  losses = losses or [1.0]
  ends = [min(losses) * 0.98, max(losses) * 1.02]
  left.plot(ends, ends, '-', color=GUIDE, lw=1, zorder=1)
  grey = dict(color='#566173', marker='o', ls='')
  left.plot([], [], label='fitted on all runs', **grey)
  left.plot([], [], mfc='white', label='held out: budget not seen', **grey)
  left.set(xlim=ends, ylim=ends, aspect='equal')
  left.set_xlabel('measured loss (nats per token)')
  left.set_ylabel('predicted loss (nats per token)')
  left.legend(loc='upper left', fontsize=8.5)
  for axes in (middle, right):
    _errors(axes, a)
  compute_axis(middle, a)
  ticks.logged(right, 'x', [r.size for r in a.runs])
  right.set_xlabel(size_label(a.size))
  return figure


def _errors(axes, a: Analysis) -> None:
  axes.axhline(0, color=GUIDE, lw=1, zorder=1)
  axes.set_ylabel('prediction error (% of measured loss)')
  if a.noise is not None:
    seeds = noise.cells(a.runs)
    wide = 200 * a.noise.deviation / np.sqrt(np.mean(np.bincount(seeds)))
    axes.axhspan(-wide, wide, color=GUIDE, alpha=0.18, lw=0, zorder=0)
    axes.set_title(
      'grey band: ± 2 standard errors of a mean of seeds',
      loc='left', fontsize=8.5, fontweight='normal', color='#566173',
    )  # fmt: skip


def _points(a: Analysis, variant: str):
  """Sizes, FLOPs, losses, predictions and whether seen: fitted, then held out.

  Cells are means of their seeds. FLOPs are shifted by variant, and again for
  held-out cells, so that no point hides another.
  """
  mine = [r for r in a.runs if r.variant == variant]
  beside = 1.035 ** (a.variants.index(variant) - (len(a.variants) - 1) / 2)
  if variant in a.surfaces:
    measured = np.array([r.loss for r in mine])
    predicted = measured / np.exp(a.surfaces[variant][0].residuals)
    table = [[r.size for r in mine], [r.flops for r in mine]]
    columns = np.array([*table, measured, predicted])
    size, flops, measured, predicted = noise.means(columns, noise.cells(mine))
    yield size, beside * flops, measured, predicted, True
  for held in a.held_out:
    if held.variant == variant:
      flops = beside * 1.035 ** len(a.variants) * held.flops
      yield held.sizes, flops, held.actual, held.predicted, False
