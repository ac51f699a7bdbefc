"""Losses, sizes and tokens against training compute."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from moejax.scaling import resample, ticks
from moejax.scaling.analysis import Analysis
from moejax.scaling.plots.style import (
  band,
  bars,
  colours,
  compute_axis,
  markers,
  plain,
  size_label,
  styled,
)


@styled
def frontiers(a: Analysis) -> Figure:
  """Least loss against training FLOPs, one power law per variant."""
  figure = Figure(figsize=(6.4, 4.4), layout='constrained')
  axes = figure.subplots()
  colour = colours(a.variants)
  for marker, variant in zip(markers(a), a.variants, strict=True):
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
      if one.draws is not None:
        near = resample.interval(one.draws.loss)
        bars(axes, one.flops, near.low95, near.high95, hue)
    label = variant
    if variant in a.frontiers:
      label = f'{variant}:  {_law_text(a.frontiers[variant].fit.theta)}'
      band(axes, a.frontiers[variant], hue)
    axes.plot([], [], marker, ls='-', color=hue, ms=6, label=label)
  compute_axis(axes, a)
  ticks.logged(axes, 'y', [r.loss for r in a.runs], 0.08, plain)
  axes.set_ylabel('validation loss (nats per token)')
  axes.legend(loc='upper right')
  return figure


def _law_text(theta) -> str:
  start = f'{theta["E"]:.3g} + ' if theta['E'] else ''
  return f'L = {start}{theta["a"]:.3g} $C^{{-{theta["b"]:.3f}}}$'


@styled
def allocation(a: Analysis) -> Figure:
  """Best size and best tokens against training FLOPs."""
  figure = Figure(figsize=(9.4, 4.2), layout='constrained')
  panels = figure.subplots(1, 2)
  colour = colours(a.variants)
  names = (('size', size_label(a.size)), ('tokens', 'training tokens D'))
  for axes, (what, words) in zip(panels, names, strict=True):
    values = []
    for place, (marker, variant) in enumerate(
      zip(markers(a), a.variants, strict=True)
    ):
      # Side by side, so that the bars of all variants can be read.
      shift = 1.04 ** (place - (len(a.variants) - 1) / 2)
      hue = colour[variant]
      law = a.allocations.get(variant, {}).get(what)
      for one in a.of(variant):
        at = getattr(one, what)
        values.append(at)
        face = hue if not one.flags else 'white'
        beside = one.flops * shift
        axes.plot(
          beside, at, marker, ms=7, color=hue, mfc=face, mew=1.4, zorder=4
        )
        if one.draws is not None:
          near = resample.interval(one.draws.size)
          ends = np.array([near.low95, near.high95])
          if what == 'tokens':
            ends = one.tokens_at(ends)
          bars(axes, beside, *ends, hue)
      label = variant
      if law is not None:
        band(axes, law, hue)
        label = f'{variant}:  $C^{{{law.fit.theta["a"]:.2f}}}$'
      axes.plot([], [], marker, ls='-' if law else '', color=hue, label=label)
    compute_axis(axes, a)
    ticks.logged(axes, 'y', values, 0.25)
    axes.set_ylabel(f'best {words}')
    axes.legend(loc='upper left')
  return figure
