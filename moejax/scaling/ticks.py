"""Log axes whose few labels are round numbers."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.ticker import (
  FixedLocator,
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullLocator,
)

from moejax import page

# Up to so many decades, label these multiples of powers of ten.
STEPS = (
  (1.1, (1, 1.5, 2, 3, 5, 7)),
  (1.8, (1, 2, 5)),
  (3.0, (1, 3)),
  (math.inf, (1,)),
)


def power_label(value: float) -> str:
  """A number as 3x10^13 in mathtext."""
  power = math.floor(math.log10(value) + 1e-9)
  lead = value / 10**power
  head = '' if abs(lead - 1) < 0.005 else f'{lead:.3g}\\times'
  return f'${head}10^{{{power}}}$'


def log_axis(axis, low: float, high: float, label=page.count) -> None:
  """Labelled ticks on a log axis, as many as the range can carry."""
  decades = math.log10(high / low)
  if decades < 0.5:
    round_ticks = MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]).tick_values(
      low, high
    )
    axis.set_major_locator(FixedLocator([t for t in round_ticks if t > 0]))
  else:
    steps = next(steps for limit, steps in STEPS if decades < limit)
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
  axis.set_major_formatter(FuncFormatter(lambda v, _: label(v)))
  axis.set_minor_locator(NullLocator())


def logged(axes, which: str, values, margin: float = 0.06, label=page.count):
  """A log axis around `values`, with a margin as a share of the range."""
  values = np.asarray([v for v in values if np.isfinite(v) and v > 0])
  low, high = np.log(values.min()), np.log(values.max())
  pad = max(margin * (high - low), 0.03)
  low, high = np.exp(low - pad), np.exp(high + pad)
  # Limits first: one value alone has no range to scale by itself.
  getattr(axes, f'set_{which}lim')(low, high)
  getattr(axes, f'set_{which}scale')('log')
  log_axis(getattr(axes, f'{which}axis'), low, high, label)
