"""Packing experts by load, with and without copies of the busiest."""

from __future__ import annotations

import numpy as np


def pack(load_E: np.ndarray, ranks: int) -> np.ndarray:
  """int [E]: an order whose ranks have about equal load, and equal experts.

  The heaviest expert left goes to the rank of least load that has room.

  Raises:
    ValueError: the ranks do not divide the experts.
  """
  held = held_by_each(len(load_E), ranks)
  total, found = np.zeros(ranks), [[] for _ in range(ranks)]
  for e in np.argsort(-np.asarray(load_E), kind='stable'):
    room = [len(own) < held for own in found]
    rank = int(np.where(room, total, np.inf).argmin())
    found[rank].append(int(e))
    total[rank] += load_E[e]
  return np.array(found).reshape(-1)


def replicas(load_E: np.ndarray, slots: int) -> np.ndarray:
  """int [slots]: the expert of each slot, busy ones with several.

  Each slot past the first E goes to the expert whose copies have the most load
  each. For `pack`, the load of a slot is the expert's over its copies.

  Raises:
    ValueError: there are fewer slots than experts.
  """
  load_E = np.asarray(load_E, np.float64)
  if slots < len(load_E):
    raise ValueError(
      f'slots={slots} are fewer than the {len(load_E)} experts, of which each '
      'needs one; give at least as many.'
    )
  copies_E = np.ones(len(load_E), int)
  for _ in range(slots - len(load_E)):
    copies_E[(load_E / copies_E).argmax()] += 1
  return np.repeat(np.arange(len(load_E)), copies_E)


def loads(load_E: np.ndarray, order_E: np.ndarray, ranks: int) -> np.ndarray:
  """[P]: the load of each rank under an order."""
  return np.asarray(load_E)[order_E].reshape(ranks, -1).sum(1)


def held_by_each(experts, ranks):
  if experts % ranks:
    raise ValueError(
      f'{experts} experts cannot be spread evenly over {ranks} ranks; use a '
      'divisor.'
    )
  return experts // ranks
