"""What not to believe of a scaling report, computed from its numbers."""

from __future__ import annotations

import math

import numpy as np

from moejax.page import number, percent, span
from moejax.scaling import resample
from moejax.scaling.analysis import Analysis
from moejax.scaling.summary import noise_text

# A mean error of the loss below this is not worth a doubt.
NEGLIGIBLE_FRAC = 1e-3


def doubts(a: Analysis) -> list[str]:
  """What not to believe, each with its reason."""
  out = []
  flagged = [p for p in a.parabolas if p.flags]
  if flagged:
    each = '; '.join(
      f'{p.variant} at {number(p.budget, 2)} ({", ".join(p.flags)})'
      for p in flagged
    )
    out.append(
      f'{len(flagged)} of {len(a.parabolas)} vertices are flagged: {each}.'
    )
  out += _extrapolations(a)
  out += _asymptotes(a)
  out += _biases(a)
  decades = math.log10(a.budgets[-1] / a.budgets[0])
  if len(a.budgets) > 1:
    out.append(
      f'The budgets span {decades:.1f} decades: exponents and intervals '
      'describe that range, and say little of what lies far beyond.'
    )
  out.append(
    'Intervals are residual bootstraps: they carry the noise of the runs, not '
    'errors of the form of a law, of untuned learning rates or of the data.'
  )
  if a.noise is None:
    out.append(noise_text(a))
  return out


def _extrapolations(a: Analysis) -> list[str]:
  far = [l for l in a.leverages if l.extrapolation]
  if not far:
    return []
  each = ', '.join(f'{l.variant} at {number(l.budget, 2)}' for l in far)
  text = (
    f'{len(far)} of {len(a.leverages)} leverages compare with {a.dense} '
    f'outside its budgets: {each}.'
  )
  law = a.frontiers[a.dense]
  if 'E' in law.fit.pinned:
    text += (
      ' The frontier is a pure power law there; if losses flatten, the true '
      'leverage beyond the largest budget is higher.'
    )
  return [text]


def _asymptotes(a: Analysis) -> list[str]:
  loose = []
  for variant, methods in a.surfaces.items():
    found = methods[0]
    near = None
    if found.draws is not None:
      near = resample.interval(found.draws[:, found.form.parameters.index('E')])
    if found.theta['E'] == 0:
      loose.append(f'{variant} (0)')
    elif near is not None and near.high95 - near.low95 > 0.2 * found.theta['E']:
      loose.append(
        f'{variant} {number(found.theta["E"], 3)} '
        f'{span(near.low95, near.high95, 3)}'
      )
  if not loose:
    return []
  return [
    f'The asymptote E is loose: {"; ".join(loose)}. Do not read it as the '
    'entropy of the data.'
  ]


def _biases(a: Analysis) -> list[str]:
  out = []
  for h in a.held_out:
    one_sided = len(h.errors) > 2 and len(set(np.sign(h.errors))) == 1
    noise = a.noise.deviation if a.noise else NEGLIGIBLE_FRAC
    one_sided = one_sided and abs(h.errors.mean()) > noise
    if one_sided:
      side = 'high' if h.errors[0] > 0 else 'low'
      out.append(
        f'{h.variant}: all held-out predictions are too {side} (mean '
        f'{percent(float(h.errors.mean()))}), a sign that the law bends '
        'between the budgets or that one rung is tuned differently.'
      )
  return out
