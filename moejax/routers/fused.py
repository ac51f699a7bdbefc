"""Which members of a router one kernel knows: the only place that says so."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import Any

from moejax.routers import affinities, select, weigh
from pallas_kernels.route.options import Groups

AFFINITIES = {affinities.softmax: 'softmax', affinities.sigmoid: 'sigmoid'}
SELECTIONS = {
  select.top_k: lambda: None,
  select.group_limited: Groups,
}
WEIGHINGS = {
  weigh.softmax: 'softmax',
  weigh.sigmoid: 'sigmoid',
  weigh.raw: 'raw',
}


def arguments(
  affinity: Callable | None, selection: Callable, weighing: Callable
) -> dict[str, Any] | None:
  """What to call `top_k_route` with, or None: it does not know a member.

  Args:
    affinity: of a `Router`, as are the others.
    selection: with or without fields bound by `functools.partial`.
    weighing: likewise.
  """
  (select_, groups), (weigh_, fields) = _unbound(selection), _unbound(weighing)
  known = (
    (affinity is None or _in(affinity, AFFINITIES))
    and _in(select_, SELECTIONS)
    and _in(weigh_, WEIGHINGS)
  )
  if not known or not _plain(groups) or not _plain(fields):
    return None
  return dict(
    affinity=None if affinity is None else AFFINITIES[affinity],
    groups=SELECTIONS[select_](**groups),
    weighing=WEIGHINGS[weigh_],
    **fields,
  )


def _unbound(function):
  if isinstance(function, functools.partial) and not function.args:
    return function.func, function.keywords
  return function, {}


def _in(function, table):
  return any(function is known for known in table)


def _plain(fields):
  """Whether a kernel can be built for these: numbers, and no zero scale."""
  plain = all(isinstance(v, numbers.Number) for v in fields.values())
  return plain and fields.get('scale', 1) != 0
