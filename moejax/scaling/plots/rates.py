"""Maps of loss over peak learning rate and batch size."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moejax import page
from moejax.scaling import ticks
from moejax.scaling.analysis import Analysis
from moejax.scaling.plots.style import styled

# Losses further above the least than this share one colour.
DEEPEST_FRAC = 0.05


@styled
def rates(a: Analysis) -> Figure:
  """One map per variant (rows) and budget or size (columns)."""
  names = [v for v in a.variants if any(m.variant == v for m in a.maps)]
  names += sorted({m.variant for m in a.maps} - set(names))
  rows = [
    sorted(
      (m for m in a.maps if m.variant == v), key=lambda m: (m.budget, m.size)
    )
    for v in names
  ]
  columns = max(map(len, rows))
  figure = Figure(
    figsize=(max(4.6, 3.3 * columns + 0.9), 2.9 * len(rows) + 0.3),
    layout='constrained',
  )
  grid = figure.subplots(len(rows), columns, squeeze=False)
  for line, mine in zip(grid, rows, strict=True):
    for axes in line[len(mine) :]:
      axes.set_visible(False)
    for axes, one in zip(line, mine, strict=False):
      colours = _map(axes, one)
    line[0].set_ylabel('batch (tokens)')
  for axes in grid[-1]:
    axes.set_xlabel('peak learning rate')
  figure.colorbar(
    colours, ax=grid, label='above the least loss (%)', shrink=0.7, aspect=30,
    extend='max',
  )  # fmt: skip
  return figure


def _map(axes, one):
  rate, batch = np.unique(one.rates), np.unique(one.batches)
  table = np.full((len(batch), len(rate)), np.nan)
  places = np.searchsorted(batch, one.batches), np.searchsorted(rate, one.rates)
  table[places] = 100 * (one.losses / one.losses.min() - 1)
  axes.set_facecolor('#eceff3')
  colours = axes.pcolormesh(
    _edges(rate), _edges(batch), table, cmap='viridis_r', vmin=0,
    vmax=100 * DEEPEST_FRAC, edgecolors='white', linewidth=0.6,
  )  # fmt: skip
  for x, y, loss, near in zip(
    one.rates, one.batches, one.losses, one.near, strict=True
  ):
    above = loss / one.losses.min() - 1
    axes.text(
      x, y, f'{loss:.3f}', ha='center', va='center', fontsize=7.5,
      color='white' if above > 0.5 * DEEPEST_FRAC else '#1d2430',
      fontweight='bold' if near else 'normal',
    )  # fmt: skip
  axes.plot(
    one.rate, one.batch, '*', ms=13, color='#D55E00', mec='white', mew=0.9,
    zorder=5,
  )  # fmt: skip
  title = f'{one.variant}, C = {ticks.power_label(one.budget)}, N = '
  axes.set_title(title + page.count(one.size), fontsize=9.5)
  axes.set(xscale='log', yscale='log')
  axes.set_xticks(rate, [f'{v:.2g}' for v in rate], fontsize=8)
  axes.set_yticks(batch, [_tokens(v) for v in batch], fontsize=8)
  axes.minorticks_off()
  axes.grid(False)
  if one.edges:
    words = 'edge: ' + ', '.join(
      'one value only' if 'only one' in why else f'{axis} at the end tried'
      for axis, why in one.edges.items()
    )
    axes.text(
      0.5, 1.0, words, transform=axes.transAxes, ha='center', va='bottom',
      fontsize=8, color='#B03A00',
    )  # fmt: skip
    axes.title.set_position((0.5, 1.09))
    axes.set_title(axes.get_title(), fontsize=9.5, pad=15)
  return colours


def _tokens(value: float) -> str:
  return f'{value:.0f}' if value < 1e4 else page.count(value)


def _edges(values: np.ndarray) -> np.ndarray:
  """Borders of cells on a log axis, halfway between values."""
  logs = np.log(values)
  if len(logs) == 1:
    return np.exp([logs[0] - 0.35, logs[0] + 0.35])
  middle = (logs[1:] + logs[:-1]) / 2
  first, last = 2 * logs[0] - middle[0], 2 * logs[-1] - middle[-1]
  return np.exp([first, *middle, last])
