"""IsoFLOP parabolas."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moejax.scaling import ticks
from moejax.scaling.analysis import Analysis
from moejax.scaling.plots.style import (
  bars,
  colours,
  shade,
  size_label,
  span,
  styled,
)


@styled
def parabolas(a: Analysis) -> Figure:
  """Loss against size, one panel per variant, one curve per budget."""
  # Four panels fill two rows of two.
  columns = 2 if len(a.variants) == 4 else min(3, len(a.variants))
  rows = math.ceil(len(a.variants) / columns)
  figure = Figure(
    figsize=(max(4.6, 3.6 * columns), 3.5 * rows + 0.5), layout='constrained'
  )
  grid = figure.subplots(
    rows, columns, squeeze=False, sharex=True, sharey=True
  ).ravel()
  colour = colours(a.variants)
  depth = dict(zip(a.budgets, np.linspace(0, 1, len(a.budgets)), strict=True))
  if len(a.budgets) == 1:
    depth = {a.budgets[0]: 1.0}
  for axes, variant in zip(grid, a.variants, strict=False):
    for one in a.of(variant):
      _parabola(axes, one, a.noise, shade(colour[variant], depth[one.budget]))
    axes.set_title(variant, color=colour[variant])
  sizes = [r.size for r in a.runs]
  # Room on the right for the budgets.
  ticks.logged(
    grid[0], 'x', [*sizes, max(sizes) * (max(sizes) / min(sizes)) ** 0.2]
  )
  for axes in grid[len(a.variants) :]:
    axes.set_visible(False)
  for place in range(len(a.variants)):
    if place % columns == 0:
      grid[place].set_ylabel('validation loss (nats per token)')
    if place + columns >= len(a.variants):
      grid[place].set_xlabel(size_label(a.size))
      grid[place].tick_params(labelbottom=True)
  figure.legend(
    handles=_parabola_keys(a.noise is not None), loc='outside lower center',
    ncols=5, handletextpad=0.5, columnspacing=1.8,
  )  # fmt: skip
  return figure


def _parabola(axes, one, noise, shade) -> None:
  trusted = not one.flags
  face = shade if trusted else 'white'
  cells = one.cells
  for size, loss, seeds in cells:
    axes.plot(size, loss, 'o', ms=5, color=shade, mfc=face, mew=1.2, zorder=3)
    if noise is not None:
      half = loss * noise.deviation / seeds**0.5
      bars(axes, size, loss - half, loss + half, shade)
  if any(seeds > 1 for _, _, seeds in cells):
    axes.plot(
      one.sizes, one.losses, '.', ms=3.5, color='#1d2430', alpha=0.45, zorder=5,
      mew=0,
    )  # fmt: skip
  if one.coefficients is not None:
    ends = [*one.sizes, one.size]
    x = span(ends, 1.08)
    line = '-' if trusted else '--'
    axes.plot(x, one.curve(x), line, color=shade, zorder=2)
  if one.usable:
    flat = span(np.clip(one.flat, one.sizes[0], one.sizes[-1]))
    axes.plot(
      flat, one.curve(flat), '-', color=shade, lw=7, alpha=0.3, zorder=1,
      solid_capstyle='butt',
    )  # fmt: skip
    axes.plot(
      one.size, one.loss, '*', ms=13, color=shade, mfc=face, mec='#1d2430',
      mew=0.8, zorder=4,
    )  # fmt: skip
  last = one.sizes[-1]
  height = one.curve(last) if one.coefficients is not None else cells[-1][1]
  axes.annotate(
    ticks.power_label(one.budget), (last, height), xytext=(9, 0),
    textcoords='offset points', va='center', fontsize=9, color='#1d2430',
  )  # fmt: skip


def _parabola_keys(seeds: bool):
  grey = '#566173'
  mean = 'mean of seeds' if seeds else 'run'
  keys = [
    Line2D([], [], marker='o', ls='', color=grey, label=mean),
    Line2D([], [], marker='*', ls='', ms=12, color=grey, mec='#1d2430',
           label='vertex'),
    Line2D([], [], color=grey, lw=7, alpha=0.3, solid_capstyle='butt',
           label='within 0.1 % of it'),
    Line2D([], [], marker='o', ls='--', color=grey, mfc='white',
           label='flagged (see table)'),
  ]  # fmt: skip
  if seeds:
    keys.insert(1, Line2D([], [], marker='.', ls='', ms=4, color='#1d2430',
                          alpha=0.45, mew=0, label='seed'))  # fmt: skip
  return keys
