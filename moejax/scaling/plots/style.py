"""What the pictures of a report share: colours, axes, bands."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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


def styled(draw):
  """Draws under `STYLE`, which matplotlib reads when artists are made."""

  def wrapper(*args, **kwargs):
    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)

  wrapper.__doc__, wrapper.__name__ = draw.__doc__, draw.__name__
  return wrapper


def colours(variants: Sequence[str]) -> dict[str, str]:
  """One colour per variant, the same in every picture."""
  return {v: PALETTE[i % len(PALETTE)] for i, v in enumerate(variants)}


def shade(colour: str, depth: float) -> tuple:
  """`colour` mixed with white; depth 1 is the colour itself."""
  rgb = np.array(matplotlib.colors.to_rgb(colour))
  return tuple(1 - (1 - rgb) * (0.35 + 0.65 * depth))


def compute_axis(axes, a: Analysis) -> None:
  """A log axis of training FLOPs with ticks at the budgets."""
  flops = [p.flops for p in a.parabolas]
  wide = [min(flops) / 1.2, max(flops) * 1.2]
  ticks.logged(axes, 'x', wide, 0.04, ticks.power_label)
  if len(a.budgets) <= 6:
    axes.set_xticks(a.budgets, [ticks.power_label(b) for b in a.budgets])
    axes.minorticks_off()
  axes.set_xlabel('training compute C (FLOPs)')


def plain(value: float) -> str:
  """A tick label of three digits."""
  return f'{value:.3g}'


def span(values, pad: float = 1.0, points: int = 200) -> np.ndarray:
  """Places on a log axis from the least to the largest of `values`."""
  values = np.asarray(values)
  return np.geomspace(values.min() / pad, values.max() * pad, points)


def markers(a: Analysis) -> list[str]:
  """One marker per variant, the same in every picture."""
  return [MARKERS[i % len(MARKERS)] for i in range(len(a.variants))]


def size_label(size: str) -> str:
  """Axis label of a parameter count."""
  words = size.removeprefix('params_').replace('non_embedding', 'non-embedding')
  return f'{words.replace("_", " ")} parameters N'


def ratio(value: float) -> str:
  """An activation ratio as 1/16."""
  inverse = 1 / value
  if value == 1:
    return '1'
  if abs(inverse - round(inverse)) < 1e-6 * inverse:
    return f'1/{round(inverse)}'
  return f'{value:.3g}'


def band(axes, law, hue, pad=1.35) -> None:
  """A fitted law with its 95 % bootstrap band."""
  x = span(law.flops, pad)
  axes.plot(x, law(x), '-', color=hue, zorder=3)
  drawn = law.drawn(x)
  if drawn is not None:
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    axes.fill_between(x, low, high, color=hue, alpha=0.14, lw=0, zorder=2)


def bars(axes, x, low, high, hue, **style) -> None:
  """Vertical error bars without caps."""
  axes.vlines(x, low, high, color=hue, lw=1.1, zorder=3, **style)
