"""Loss over peak learning rate and batch size, and where it is least."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from moejax.scaling import fit, forms
from moejax.scaling.runs import Excluded, Run

ROLE = 'rates'
# Source: arXiv 2507.17702, section 3.1: losses this near the least count as
# good.
NEAR_FRAC = 2.5e-3
AXES = {'rate': 'peak learning rate', 'batch': 'batch'}


@dataclasses.dataclass(frozen=True)
class Map:
  """The search of one model at one budget.

  Attributes:
    rates, batches, losses, seeds: of the cells; batches in tokens, losses
      means over seeds, `[cells]`.
    least: index of the cell with the least loss.
    rate, batch, loss: at the vertex of a quadratic in log2 of both, through the
      least cell and its neighbours; the least cell's own where an axis has no
      neighbours on both sides or no minimum between them.
    fitted: the axes whose optimum is such a vertex.
    edges: for each axis whose least loss lies at the end of what was tried,
      what to try next.
    near: cells within 0.25 % of the least loss, bool `[cells]`.
  """

  variant: str
  budget: float
  size: float
  rates: np.ndarray
  batches: np.ndarray
  losses: np.ndarray
  seeds: np.ndarray
  least: int
  rate: float
  batch: float
  loss: float
  fitted: tuple[str, ...]
  edges: dict[str, str]
  near: np.ndarray


def maps(runs: Sequence[Run]) -> tuple[list[Map], list[Excluded]]:
  """One map per variant, budget and size, and the runs that tell no rate."""
  groups: dict[tuple, dict[tuple, list[float]]] = {}
  excluded = []
  for run in runs:
    place = [_label(run, name) for name in ('peak_lr', 'batch_tokens')]
    if None in place:
      reason = 'role is rates, without labels.peak_lr and labels.batch_tokens'
      excluded.append(Excluded(run.name, run.variant, run.budget, reason))
      continue
    key = run.variant, run.budget, run.size
    cells = groups.setdefault(key, {})
    cells.setdefault(tuple(place), []).append(run.loss)
  return [_map(*key, cells) for key, cells in groups.items()], excluded


def _label(run: Run, name: str) -> float | None:
  try:
    value = float(run.row['labels'][name])
  except (KeyError, TypeError, ValueError):
    return None
  return value if value > 0 else None


def _map(variant, budget, size, cells) -> Map:
  places = sorted(cells)
  rates, batches = np.array(places).T
  losses = np.array([np.mean(cells[p]) for p in places])
  least = int(np.argmin(losses))
  ends = [_steps(values) for values in (rates, batches)]
  start = tuple(int(steps[least]) for steps in ends)
  table = dict(zip(zip(*ends, strict=True), losses, strict=True))
  optimum, fitted = _optimum(np.log2([rates, batches]), ends, start, table)
  return Map(
    variant,
    budget,
    size,
    rates,
    batches,
    losses,
    np.array([len(cells[p]) for p in places]),
    least,
    float(2 ** optimum[0]),
    float(2 ** optimum[1]),
    float(optimum[2]),
    fitted,
    _edges(rates, batches, ends, start),
    losses <= (1 + NEAR_FRAC) * losses[least],
  )


def _steps(values: np.ndarray) -> np.ndarray:
  """Place of each value among the distinct ones."""
  return np.unique(values, return_inverse=True)[1]


def _edges(rates, batches, ends, start) -> dict[str, str]:
  out = {}
  tried = zip(AXES.items(), (rates, batches), ends, start, strict=True)
  for (axis, words), values, steps, place in tried:
    last = steps.max()
    if last == 0:
      out[axis] = f'only one {words} was tried'
    elif place in (0, last):
      side = 'smallest' if place == 0 else 'largest'
      way = 'smaller' if place == 0 else 'larger'
      value = values.min() if place == 0 else values.max()
      out[axis] = (
        f'the least loss is at the {side} {words} tried, {value:.3g}: try '
        f'{way} ones'
      )
  return out


def _optimum(logs, ends, start, table):
  """(log2 rate, log2 batch, loss), and the axes that a vertex decided."""
  axes = [np.unique(l) for l in logs]
  centre = np.array([axis[i] for axis, i in zip(axes, start, strict=True)])
  steps = [
    (i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)
    if (start[0] + i, start[1] + j) in table
  ]  # fmt: skip
  x = np.array(
    [
      [axes[a][start[a] + step[a]] - centre[a] for a in (0, 1)]
      for step in steps
    ]
  )
  y = np.array([table[start[0] + i, start[1] + j] for i, j in steps])
  both = _vertex(x, y) if len(steps) == 9 else None
  if both is not None:
    return (*(centre + both[:2]), both[2]), tuple(AXES)
  point, loss, fitted = centre.copy(), table[start], []
  for a, axis in enumerate(AXES):
    line = x[:, 1 - a] == 0
    if line.sum() == 3:
      one = _vertex(x[line][:, [a]], y[line])
      if one is not None:
        point[a], loss = centre[a] + one[0], min(loss, one[1])
        fitted.append(axis)
  return (*point, loss), tuple(fitted)


def _vertex(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
  """Minimum of a full quadratic, with its value, if it lies among the points.

  Args:
    x: `[points, axes]`.
  """
  axes = x.shape[1]
  pairs = [(a, b) for a in range(axes) for b in range(a, axes)]
  columns = [np.ones(len(x)), *x.T, *(x[:, a] * x[:, b] for a, b in pairs)]
  found = np.linalg.lstsq(np.stack(columns, 1), y, rcond=None)[0]
  slope = found[1 : 1 + axes]
  bend = np.zeros((axes, axes))
  for (a, b), value in zip(pairs, found[1 + axes :], strict=True):
    bend[a, b] += value
    bend[b, a] += value
  if np.linalg.eigvalsh(bend).min() <= 0:
    return None
  place = -np.linalg.solve(bend, slope)
  if np.any(place < x.min(0)) or np.any(place > x.max(0)):
    return None
  return np.append(place, found[0] + 0.5 * slope @ place)


@dataclasses.dataclass(frozen=True)
class RateLaw:
  """The optimum of one axis as a power of training FLOPs.

  Attributes:
    fit: `forms.learning_rate` or `forms.batch_tokens`; None with one budget.
    budgets, values: what was searched, without optima at an edge.
  """

  fit: fit.Fit | None
  budgets: np.ndarray
  values: np.ndarray

  def __call__(self, flops: float) -> float:
    """The value for a budget; with one budget searched, that one's."""
    if self.fit is None:
      return float(self.values[0])
    return float(self.fit.predict({'C': np.array([flops])})[0])


def law(of: Sequence[Map], variant: str, axis: str) -> RateLaw | None:
  """The law of a variant's `rate` or `batch`; None if nothing tells it.

  At each budget the map with the least loss counts; those whose optimum lies at
  an edge do not.
  """
  best: dict[float, Map] = {}
  for one in of:
    if one.variant == variant:
      known = best.get(one.budget)
      if known is None or one.loss < known.loss:
        best[one.budget] = one
  kept = [m for b, m in sorted(best.items()) if axis not in m.edges]
  if not kept:
    return None
  budgets = np.array([m.budget for m in kept])
  values = np.array([getattr(m, axis) for m in kept])
  if len(kept) == 1:
    return RateLaw(None, budgets, values)
  form = forms.learning_rate if axis == 'rate' else forms.batch_tokens
  return RateLaw(fit.varpro(form, {'C': budgets}, values), budgets, values)
