"""What the laws of a sweep say of 10 and 100 times its largest budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from moejax.scaling import fit, forms, rates, resample
from moejax.scaling.heldout import HeldOut
from moejax.scaling.leverage import Law

FACTORS = (10, 100)
SURFACE = 'surface'
VERTICES = 'vertices'
# Share of draws in which an order must hold to be called one.
SURE_FRAC = 0.95


@dataclasses.dataclass(frozen=True)
class Ahead:
  """The best model of one variant at a budget that was not run.

  Attributes:
    flops: training FLOPs, `factor` times the largest budget of the sweep.
    size, tokens, loss: by the surface L(N, D) where it has an optimum, else by
      the power laws through the vertices; `by` says which.
    intervals: of size, tokens and loss, each or None.
    other: size, tokens and loss by the vertices' laws where `by` is the
      surface, each or None.
    beyond: decades past the largest budget, in decades that were sampled.
    rate, batch: laws of peak learning rate and batch, or None.
    draws: loss of each bootstrap draw, nan without an optimum, `[draws]`.
    doubts: why the data do not support this, empty if they do.
  """

  variant: str
  factor: int
  flops: float
  by: str
  size: float
  tokens: float
  loss: float
  intervals: tuple[resample.Interval | None, ...]
  other: tuple[float | None, ...]
  beyond: float
  rate: rates.RateLaw | None
  batch: rates.RateLaw | None
  draws: np.ndarray | None
  doubts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
  """The variants at one budget ahead, the least predicted loss first.

  Attributes:
    share: of draws in which the first beats all others; None without draws or
      with one variant.
  """

  factor: int
  order: tuple[Ahead, ...]
  share: float | None

  @property
  def separated(self) -> bool:
    """Whether the first stays first in 95 % of draws."""
    return self.share is not None and self.share >= SURE_FRAC


@dataclasses.dataclass(frozen=True)
class Known:
  """What a sweep knows of one variant; each law or None."""

  variant: str
  budgets: Sequence[float]
  cost: forms.Cost
  surface: fit.Fit | None
  frontier: Law | None
  allocations: Mapping[str, Law]
  held_out: HeldOut | None
  rate: rates.RateLaw | None
  batch: rates.RateLaw | None


def look_ahead(known: Sequence[Known]) -> list[Choice]:
  """The choice at each of `FACTORS`; variants without a law are left out."""
  largest = max((max(k.budgets) for k in known), default=0.0)
  out = []
  for factor in FACTORS:
    found = [_ahead(k, factor, factor * largest) for k in known]
    found = sorted((f for f in found if f is not None), key=lambda f: f.loss)
    if found:
      out.append(Choice(factor, tuple(found), _share(found)))
  return out


def _share(found: Sequence[Ahead]) -> float | None:
  drawn = [f.draws for f in found]
  if len(found) < 2 or any(d is None for d in drawn):
    return None
  count = min(map(len, drawn))
  table = np.stack([d[:count] for d in drawn])
  table = table[:, np.isfinite(table).all(0)]
  if table.shape[1] < 20:
    return None
  return float(np.mean(table.argmin(0) == 0))


def _ahead(k: Known, factor: int, flops: float) -> Ahead | None:
  laws = (k.allocations.get('size'), k.allocations.get('tokens'), k.frontier)
  at = np.array([flops])
  other = tuple(None if law is None else float(law(at)[0]) for law in laws)
  best = (
    None
    if k.surface is None
    else forms.optimum_if_any(k.surface.theta, at, k.cost)
  )
  if best is not None:
    by = SURFACE
    point = tuple(float(v[0]) for v in best)
    rows = [forms.optimum_if_any(t, at, k.cost) for t in k.surface.drawn()]
    gap = np.full((3, 1), np.nan)
    drawn = [gap if row is None else np.array(row) for row in rows]
    table = np.array(drawn)[:, :, 0].T if drawn else [None] * 3
  elif None not in other:
    by, point, other = VERTICES, other, (None, None, None)
    each = [law.drawn(at) for law in laws]
    table = [None if d is None else d[:, 0] for d in each]
  else:
    return None
  sampled = math.log10(max(k.budgets) / min(k.budgets))
  beyond = math.log10(flops / max(k.budgets)) / sampled if sampled else math.inf
  near = tuple(resample.interval(row) for row in table)
  return Ahead(
    k.variant,
    factor,
    flops,
    by,
    *point,
    near,
    other,
    beyond,
    k.rate,
    k.batch,
    table[2],
    tuple(_doubts(k, point[2], near[2], beyond, table[2])),
  )


def _doubts(k: Known, loss, near, beyond, drawn):
  if beyond > 1:
    yield f'it lies {beyond:.2f} times the sampled range of compute away'
  if len(set(k.budgets)) < 3:
    yield f'only {len(set(k.budgets))} budgets were run'
  if near is None:
    yield 'no interval could be computed'
    return
  lost = 1 - np.isfinite(drawn).mean()
  if lost > 0.05:
    yield f'{lost:.0%} of draws have no best size'
  half = 0.5 * (near.high95 - near.low95) / loss
  if k.held_out is not None:
    error = float(np.mean(np.abs(k.held_out.errors)))
    if error > half:
      yield (
        f'the law missed the largest budget by {error:.2%} when it had not '
        f'seen it, more than the {half:.2%} that this interval allows'
      )
