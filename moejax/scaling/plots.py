"""Pictures of a scaling analysis, as figures without global state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moejax.scaling import ticks
from moejax.scaling.analysis import Analysis

# Told apart with any colour vision; dense is the darkest.
PALETTE = (
  '#222222', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
)  # fmt: skip
MARKERS = ('o', 's', 'D', '^', 'v', 'P', 'X')
GUIDE = '#9aa3b0'
STYLE = {
  'font.family': 'DejaVu Sans',
  'font.size': 9.5,
  'axes.titlesize': 10.5,
  'axes.titleweight': 'bold',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': '#566173',
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#e9ecf1',
  'grid.linewidth': 0.8,
  'legend.frameon': False,
  'legend.fontsize': 9,
  'lines.linewidth': 1.6,
  'mathtext.default': 'regular',
}
DPI = 160


def save(figure: Figure, path: str) -> None:
  """Writes a figure as PNG."""
  FigureCanvasAgg(figure)
  figure.savefig(path, dpi=DPI)


def _styled(draw):
  """Draws under `STYLE`, which matplotlib reads when artists are made."""

  def wrapper(*args, **kwargs):
    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)

  wrapper.__doc__, wrapper.__name__ = draw.__doc__, draw.__name__
  return wrapper


def colours(variants: Sequence[str]) -> dict[str, str]:
  """One colour per variant, the same in every picture."""
  return {v: PALETTE[i % len(PALETTE)] for i, v in enumerate(variants)}


def _shade(colour: str, depth: float) -> tuple:
  """`colour` mixed with white; depth 1 is the colour itself."""
  rgb = np.array(matplotlib.colors.to_rgb(colour))
  return tuple(1 - (1 - rgb) * (0.35 + 0.65 * depth))


def _compute_axis(axes, a: Analysis) -> None:
  """A log axis of training FLOPs with ticks at the budgets."""
  flops = [p.flops for p in a.parabolas]
  wide = [min(flops) / 1.2, max(flops) * 1.2]
  ticks.logged(axes, 'x', wide, 0.04, ticks.power_label)
  if len(a.budgets) <= 6:
    axes.set_xticks(a.budgets, [ticks.power_label(b) for b in a.budgets])
    axes.minorticks_off()
  axes.set_xlabel('training compute C (FLOPs)')


def _plain(value: float) -> str:
  return f'{value:.3g}'


def _span(values, pad: float = 1.0, points: int = 200) -> np.ndarray:
  values = np.asarray(values)
  return np.geomspace(values.min() / pad, values.max() * pad, points)


@_styled
def parabolas(a: Analysis) -> Figure:
  """Loss against size, one panel per variant, one curve per budget."""
  columns = min(3, len(a.variants))
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
      _parabola(axes, one, _shade(colour[variant], depth[one.budget]))
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
    handles=_parabola_keys(), loc='outside lower center', ncols=4,
    handletextpad=0.5, columnspacing=1.8,
  )  # fmt: skip
  return figure


def _parabola(axes, one, shade) -> None:
  trusted = not one.flags
  face = shade if trusted else 'white'
  axes.plot(
    one.sizes, one.losses, 'o', ms=5, color=shade, mfc=face, mew=1.2, zorder=3
  )
  if one.coefficients is not None:
    ends = [*one.sizes, one.size]
    x = _span(ends, 1.08)
    line = '-' if trusted else '--'
    axes.plot(x, one.curve(x), line, color=shade, zorder=2)
  if one.usable:
    axes.plot(
      one.size, one.loss, '*', ms=14, color=shade, mfc=face, mec='#1d2430',
      mew=0.8, zorder=4,
    )  # fmt: skip
  last = one.sizes[-1]
  height = one.curve(last) if one.coefficients is not None else one.losses[-1]
  axes.annotate(
    ticks.power_label(one.budget), (last, height), xytext=(9, 0),
    textcoords='offset points', va='center', fontsize=9, color='#1d2430',
  )  # fmt: skip


def _parabola_keys():
  grey = '#566173'
  return [
    Line2D([], [], marker='o', ls='', color=grey, label='run'),
    Line2D([], [], marker='*', ls='', ms=12, color=grey, mec='#1d2430',
           label='vertex'),
    Line2D([], [], marker='o', ls='--', color=grey, mfc='white',
           label='flagged (see table)'),
    Line2D([], [], ls='', label='labels: training FLOPs'),
  ]  # fmt: skip


def size_label(size: str) -> str:
  """Axis label of a parameter count."""
  words = size.removeprefix('params_').replace('non_embedding', 'non-embedding')
  return f'{words.replace("_", " ")} parameters N'


@_styled
def frontiers(a: Analysis) -> Figure:
  """Least loss against training FLOPs, one power law per variant."""
  figure = Figure(figsize=(6.4, 4.4), layout='constrained')
  axes = figure.subplots()
  colour = colours(a.variants)
  for marker, variant in zip(_markers(a), a.variants, strict=True):
    mine, hue = a.of(variant), colour[variant]
    axes.plot(
      [r.flops for r in a.runs if r.variant == variant],
      [r.loss for r in a.runs if r.variant == variant],
      '.', ms=4, color=hue, alpha=0.35, zorder=1,
    )  # fmt: skip
    for one in mine:
      face = hue if not one.flags else 'white'
      axes.plot(
        one.flops, one.loss, marker, ms=7, color=hue, mfc=face, mew=1.4,
        zorder=4,
      )  # fmt: skip
    label = variant
    if variant in a.frontiers:
      label = f'{variant}:  {_law_text(a.frontiers[variant].fit.theta)}'
      _band(axes, a.frontiers[variant], hue)
    axes.plot([], [], marker, ls='-', color=hue, ms=6, label=label)
  _compute_axis(axes, a)
  ticks.logged(axes, 'y', [r.loss for r in a.runs], 0.08, _plain)
  axes.set_ylabel('validation loss (nats per token)')
  axes.legend(loc='upper right')
  return figure


def _markers(a: Analysis) -> list[str]:
  return [MARKERS[i % len(MARKERS)] for i in range(len(a.variants))]


def _law_text(theta) -> str:
  start = f'{theta["E"]:.3g} + ' if theta['E'] else ''
  return f'L = {start}{theta["a"]:.3g} $C^{{-{theta["b"]:.3f}}}$'


def _band(axes, law, hue, pad=1.35) -> None:
  """A fitted law with its 95 % bootstrap band."""
  x = _span(law.flops, pad)
  axes.plot(x, law(x), '-', color=hue, zorder=3)
  drawn = law.drawn(x)
  if drawn is not None:
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    axes.fill_between(x, low, high, color=hue, alpha=0.14, lw=0, zorder=2)


@_styled
def leverage(a: Analysis) -> Figure:
  """Efficiency leverage against activation ratio, one line per budget."""
  figure = Figure(figsize=(6.4, 4.4), layout='constrained')
  axes = figure.subplots()
  shown = [l for l in a.leverages if l.value is not None and l.activation > 0]
  scale = matplotlib.colormaps['viridis']
  for place, budget in enumerate(a.budgets):
    mine = sorted(
      (l for l in shown if l.budget == budget), key=lambda l: l.activation
    )
    if not mine:
      continue
    hue = scale(0.08 + 0.75 * place / max(1, len(a.budgets) - 1))
    # Budgets sit side by side, so that their error bars can be read.
    shift = 1.035 ** (place - (len(a.budgets) - 1) / 2)
    x = [l.activation * shift for l in mine]
    axes.plot(x, [l.value for l in mine], '-', color=hue, zorder=2)
    for at, one in zip(x, mine, strict=True):
      face = 'white' if one.notes else hue
      axes.plot(
        at, one.value, 'o', ms=7, color=hue, mfc=face, mew=1.5, zorder=4
      )
      if one.interval is not None:
        ends = [one.interval.low95, one.interval.high95]
        axes.plot([at, at], ends, '-', color=hue, lw=1.1, zorder=3)
    axes.plot([], [], 'o-', color=hue, label=f'C = {ticks.power_label(budget)}')
  axes.axhline(1, color=GUIDE, lw=1, ls=':', zorder=1)
  axes.plot([], [], 'o', color='#566173', mfc='white', label='extrapolated')
  values = [l.value for l in shown] + [1.0]
  for one in shown:
    if one.interval is not None:
      values += [one.interval.low95, one.interval.high95]
  ratios = sorted({l.activation for l in shown})
  ticks.logged(axes, 'x', ratios or [0.1, 1], 0.08)
  ticks.logged(axes, 'y', values, 0.08, lambda v: f'{v:.3g}×')
  axes.set_xticks(ratios, [_ratio(r) for r in ratios])
  axes.set_xlabel('activation ratio (active / total experts)')
  axes.set_ylabel(f'efficiency leverage (compute of {a.dense} / own)')
  axes.legend(loc='upper right')
  return figure


def _ratio(value: float) -> str:
  inverse = 1 / value
  if value == 1:
    return '1'
  if abs(inverse - round(inverse)) < 1e-6 * inverse:
    return f'1/{round(inverse)}'
  return f'{value:.3g}'


@_styled
def allocation(a: Analysis) -> Figure:
  """Best size and best tokens against training FLOPs."""
  figure = Figure(figsize=(9.4, 4.2), layout='constrained')
  panels = figure.subplots(1, 2)
  colour = colours(a.variants)
  names = (('size', size_label(a.size)), ('tokens', 'training tokens D'))
  for axes, (what, words) in zip(panels, names, strict=True):
    values = []
    for marker, variant in zip(_markers(a), a.variants, strict=True):
      hue = colour[variant]
      law = a.allocations.get(variant, {}).get(what)
      for one in a.of(variant):
        at = getattr(one, what)
        values.append(at)
        face = hue if not one.flags else 'white'
        axes.plot(
          one.flops, at, marker, ms=7, color=hue, mfc=face, mew=1.4, zorder=4
        )
      label = variant
      if law is not None:
        _band(axes, law, hue)
        label = f'{variant}:  $C^{{{law.fit.theta["a"]:.2f}}}$'
      axes.plot([], [], marker, ls='-' if law else '', color=hue, label=label)
    _compute_axis(axes, a)
    ticks.logged(axes, 'y', values, 0.25)
    axes.set_ylabel(f'best {words}')
    axes.legend(loc='upper left')
  return figure


@_styled
def residuals(a: Analysis) -> Figure:
  """Predicted against measured loss, and errors against compute."""
  figure = Figure(figsize=(9.4, 4.2), layout='constrained')
  left, right = figure.subplots(1, 2)
  colour = colours(a.variants)
  losses = [1.0]
  for marker, variant in zip(_markers(a), a.variants, strict=True):
    hue = colour[variant]
    for measured, predicted, flops, face in _points(a, variant):
      style = dict(color=hue, mfc=hue if face else 'white', mew=1.3, ms=5.5)
      left.plot(measured, predicted, marker, **style, zorder=3)
      right.plot(
        flops, 100 * (predicted / measured - 1), marker, **style, zorder=3
      )
      losses = [*losses, *measured, *predicted]
    left.plot([], [], marker, color=hue, label=variant)
  losses = losses[1:] or losses
  ends = [min(losses) * 0.98, max(losses) * 1.02]
  left.plot(ends, ends, '-', color=GUIDE, lw=1, zorder=1)
  grey = dict(color='#566173', marker='o', ls='')
  left.plot([], [], label='fitted on all runs', **grey)
  left.plot([], [], mfc='white', label='held out: budget not seen', **grey)
  left.set(xlim=ends, ylim=ends, aspect='equal')
  left.set_xlabel('measured loss (nats per token)')
  left.set_ylabel('predicted loss (nats per token)')
  left.legend(loc='upper left', fontsize=8.5)
  right.axhline(0, color=GUIDE, lw=1, zorder=1)
  if a.noise is not None:
    wide = 200 * a.noise.deviation
    right.axhspan(-wide, wide, color=GUIDE, alpha=0.18, lw=0, zorder=0)
    right.set_title(
      'grey band: ± 2 standard deviations between seeds',
      loc='left', fontsize=8.5, fontweight='normal', color='#566173',
    )  # fmt: skip
  _compute_axis(right, a)
  right.set_ylabel('prediction error (% of measured loss)')
  return figure


def _points(a: Analysis, variant: str):
  """Measured, predicted, FLOPs and whether fitted: all runs, then held out.

  FLOPs are shifted by variant, and again for held-out runs, so that no point
  hides another.
  """
  mine = [r for r in a.runs if r.variant == variant]
  beside = 1.035 ** (a.variants.index(variant) - (len(a.variants) - 1) / 2)
  if variant in a.surfaces:
    measured = np.array([r.loss for r in mine])
    predicted = measured / np.exp(a.surfaces[variant][0].residuals)
    flops = beside * np.array([r.flops for r in mine])
    yield measured, predicted, flops, True
  for held in a.held_out:
    if held.variant == variant:
      shift = beside * 1.035 ** len(a.variants)
      flops = shift * np.array([r.flops for r in held.runs])
      yield held.actual, held.predicted, flops, False
