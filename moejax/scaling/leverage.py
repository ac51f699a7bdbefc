"""Compute laws read off IsoFLOP vertices: frontier, allocation, leverage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from moejax.scaling import fit, forms, resample
from moejax.scaling.isoflop import Parabola

# Below this many budgets an asymptote cannot be told from an exponent.
ASYMPTOTE_BUDGETS = 4
# Beyond this a draw counts as never reaching the loss; squares stay finite.
MOST_LOG_FLOPS = 300


@dataclasses.dataclass(frozen=True)
class Law:
  """A one-covariate law of training FLOPs through the vertices of a variant."""

  fit: fit.Fit
  flops: np.ndarray
  values: np.ndarray
  notes: tuple[str, ...] = ()

  @property
  def falls(self) -> bool:
    """Whether the law changes with compute by more than rounding."""
    theta = self.fit.theta
    edge = 1.01 * forms.EXPONENT_RANGE[0]
    return theta.get('a', 0) > 0 and theta.get('b', 1) > edge

  def __call__(self, flops: np.ndarray) -> np.ndarray:
    """The law at `flops`."""
    return self.fit.predict({'C': flops})

  def drawn(self, flops: np.ndarray) -> np.ndarray | None:
    """The law of each bootstrap draw at `flops`, `[draws, flops]`."""
    rows = [self.fit.form(t, {'C': flops}) for t in self.fit.drawn()]
    return np.array(rows) if rows else None


@dataclasses.dataclass(frozen=True)
class Leverage:
  """How many times more compute the dense variant needs for the same loss.

  Attributes:
    value: C_dense / C_variant; None when dense never reaches the loss.
    dense_flops: C_dense.
    interval: bootstrap interval of `value`.
    notes: 'extrapolated ...' and the like; empty when measured inside.
    flops: training FLOPs that the variant spent.
    granularity: of the variant's experts, nan if not told.
    draws: `value` of each bootstrap draw, inf where dense never reaches the
      loss, `[draws]`; a draw is the same one in all leverages.
  """

  variant: str
  budget: float
  activation: float
  loss: float
  value: float | None
  dense_flops: float | None
  interval: resample.Interval | None
  notes: tuple[str, ...]
  flops: float
  granularity: float
  draws: np.ndarray | None = None

  @property
  def extrapolation(self) -> str | None:
    """The note on how far outside the budgets of dense it lies, if it does."""
    found = [note for note in self.notes if note.startswith('extrapolated')]
    return found[0] if found else None


def frontier(fitted: Sequence[Parabola], *, draws: int = 300) -> Law:
  """Least loss of one variant as a law of training FLOPs.

  E + a C^-b with four budgets and more; with fewer E is pinned to 0. A
  parabola without a usable vertex counts with its least sampled loss.

  Raises:
    fit.FitRefused: for fewer than two budgets.
  """
  notes = []
  pinned = {}
  if len(fitted) < ASYMPTOTE_BUDGETS:
    pinned = {'E': 0.0}
    notes.append(
      f'E pinned to 0: {len(fitted)} budgets cannot separate E from b'
    )
  bounds = [f'{p.budget:.1e}' for p in fitted if not p.usable]
  if bounds:
    notes.append(
      f'at {", ".join(bounds)} the least sampled loss stands in for the vertex'
    )
  losses = [None if p.draws is None else p.draws.loss for p in fitted]
  return _law(
    forms.compute_frontier,
    np.array([p.flops for p in fitted]),
    np.array([p.loss for p in fitted]),
    losses,
    pinned,
    notes,
    draws,
  )


def allocation(
  fitted: Sequence[Parabola], what: str, *, draws: int = 300
) -> Law:
  """Best size (`what='size'`) or tokens of one variant as a power of FLOPs.

  Only usable vertices count. Draws without an interior minimum sit at the edge
  of the sampled sizes, so that intervals are too narrow where many do.

  Raises:
    fit.FitRefused: for fewer than two usable vertices.
  """
  kept = [p for p in fitted if p.usable]
  values = np.array([getattr(p, what) for p in kept])
  drawn = []
  for one in kept:
    if one.draws is None:
      drawn.append(None)
      continue
    # Tokens follow from size at the cost per token of this budget's runs.
    sizes = one.draws.size
    drawn.append(sizes if what == 'size' else one.tokens_at(sizes))
  notes = []
  if len(kept) == 2:
    notes.append('a line through two vertices: no residual is left')
  if len(kept) < len(fitted):
    notes.append(f'{len(fitted) - len(kept)} unusable vertices left out')
  flops = np.array([p.flops for p in kept])
  return _law(forms.allocation, flops, values, drawn, {}, notes, draws)


def _law(form, flops, values, drawn, pinned, notes, draws) -> Law:
  if len(flops) < 2:
    raise fit.FitRefused(
      f'{len(flops)} usable budgets; a law of compute needs 2 or more.'
    )
  covariates = {'C': flops}
  found = fit.varpro(form, covariates, values, pinned=pinned)
  if draws and all(d is not None for d in drawn):
    table = np.stack(drawn, 1)[:draws]
    rows = [fit.refit(found, covariates, row) for row in table]
    found = dataclasses.replace(found, draws=np.array(rows))
  return Law(found, flops, values, tuple(notes))


def flops_at(theta: forms.Theta, loss: float) -> float:
  """Training FLOPs at which the compute frontier reaches `loss`.

  Infinite when the loss is at or below the asymptote.
  """
  if loss <= theta['E'] or theta['a'] <= 0:
    return math.inf
  log_flops = -math.log((loss - theta['E']) / theta['a']) / theta['b']
  return math.exp(log_flops) if log_flops < MOST_LOG_FLOPS else math.inf


def leverages(
  fitted: Sequence[Parabola], dense: str, law: Law
) -> list[Leverage]:
  """Efficiency leverage of every parabola over the dense frontier.

  Source: arXiv 2507.17702, section 3 (EL = C_dense / C_moe at equal loss).
  """
  return [_leverage(one, dense, law) for one in fitted]


def _leverage(one: Parabola, dense: str, law: Law) -> Leverage:
  theta = law.fit.theta
  reached = flops_at(theta, one.loss)
  notes = []
  if not math.isfinite(reached):
    notes.append(f'loss below the asymptote of {dense}: no finite leverage')
  elif reached > law.flops.max() * 1.001 and one.variant != dense:
    times = reached / law.flops.max()
    notes.append(f'extrapolated {times:.2g} times beyond {dense} budgets')
  elif reached < law.flops.min() * 0.999 and one.variant != dense:
    times = law.flops.min() / reached
    notes.append(f'extrapolated {times:.2g} times below {dense} budgets')
  if not one.usable:
    notes.append('vertex unusable: from its least sampled loss')
  drawn = None
  if one.draws is not None and law.fit.draws is not None:
    pairs = zip(law.fit.drawn(), one.draws.loss, strict=False)
    drawn = np.array([flops_at(t, loss) / one.flops for t, loss in pairs])
    if not np.isfinite(drawn).all():
      share = 1 - np.isfinite(drawn).mean()
      notes.append(f'{share:.0%} of draws have no finite leverage')
  finite = math.isfinite(reached)
  return Leverage(
    one.variant,
    one.budget,
    one.activation,
    one.loss,
    reached / one.flops if finite else None,
    reached if finite else None,
    resample.interval(drawn),
    tuple(notes),
    one.flops,
    one.runs[0].granularity,
    drawn,
  )
