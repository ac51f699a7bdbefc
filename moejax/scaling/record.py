"""The numbers of a scaling report as plain values, for other programs."""

from __future__ import annotations

import math
from typing import Any

from moejax.scaling import analysis, fit, resample, tables


def record(a: analysis.Analysis) -> dict[str, Any]:
  """The numbers of the report as plain values, for other programs."""
  return _plain({
    'size': a.size,
    'draws': a.draws,
    'seed': a.seed,
    'runs': len(a.runs),
    'excluded': [vars(e) for e in a.excluded],
    'absent': [list(pair) for pair in a.absent],
    'seed_noise': vars(a.noise) if a.noise else None,
    'vertices': [
      {
        'variant': p.variant, 'budget_flops': p.budget, 'flops': p.flops,
        'activation_ratio': p.activation, 'size': p.size, 'tokens': p.tokens,
        'loss': p.loss, 'flat': p.flat, 'flags': p.flags,
      }
      for p in a.parabolas
    ],
    'fits': [_fit_record(*each) for each in tables.fits(a)],
    'leverage': [
      {**vars(l), 'interval': _interval(l.interval), 'draws': None}
      for l in a.leverages
    ],
    'trends': [
      {**vars(t), 'interval': _interval(t.interval), 'inside': t.inside and
       [t.inside[0], _interval(t.inside[1])]}
      for t in a.trends
    ],
    'leverage_law': _leverage_law(a.leverage_law),
    'ahead': [_ahead(c, o) for c in a.choices for o in c.order],
    'rates': [
      {
        'variant': m.variant, 'budget_flops': m.budget, 'size': m.size,
        'rates': m.rates.tolist(), 'batches': m.batches.tolist(),
        'losses': m.losses.tolist(), 'rate': m.rate, 'batch': m.batch,
        'loss': m.loss, 'fitted': m.fitted, 'edges': m.edges,
      }
      for m in a.maps
    ],
    'held_out': [
      {
        'variant': h.variant, 'budget_flops': h.budget,
        'runs': [r.name for r in h.runs], 'seeds': h.seeds.tolist(),
        'predicted': h.predicted.tolist(),
        'actual': h.actual.tolist(), 'vertex': h.vertex,
        'frontier': h.frontier,
      }
      for h in a.held_out
    ],
  })  # fmt: skip


def _interval(near: resample.Interval | None) -> dict[str, float] | None:
  return near and vars(near)


def _leverage_law(law) -> dict[str, Any] | None:
  if law is None:
    return None
  return {
    'theta': law.fit.theta, 'pinned': law.fit.pinned,
    'theta_without_largest': law.ahead and law.ahead.theta,
    'variants': [l.variant for l in law.points],
    'budgets': [l.budget for l in law.points],
    'predicted': law.predicted.tolist(), 'held_out': law.held_out.tolist(),
  }  # fmt: skip


def _ahead(choice, one) -> dict[str, Any]:
  return {
    'factor': one.factor, 'flops': one.flops, 'variant': one.variant,
    'by': one.by, 'size': one.size, 'tokens': one.tokens, 'loss': one.loss,
    'intervals': [_interval(near) for near in one.intervals],
    'vertices': one.other, 'beyond': one.beyond,
    'rate': one.rate and one.rate(one.flops),
    'batch': one.batch and one.batch(one.flops), 'doubts': one.doubts,
    'share_first': choice.share if one is choice.order[0] else None,
  }  # fmt: skip


def _fit_record(
  variant: str, law: str, found: fit.Fit, notes
) -> dict[str, Any]:
  intervals = {}
  for place, name in enumerate(found.form.parameters):
    if found.draws is not None and name not in found.pinned:
      near = resample.interval(found.draws[:, place])
      intervals[name] = near and vars(near)
  return {
    'variant': variant, 'law': law, 'method': found.method,
    'theta': found.theta, 'pinned': found.pinned, 'intervals': intervals,
    'objective': found.objective, 'n': len(found.residuals),
    'restarts': found.restarts, 'agreeing': found.agreeing,
    'notes': [*notes, *found.warnings],
  }  # fmt: skip


def _plain(value):
  """Numbers that JSON can hold: what is not finite becomes None."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  return value
