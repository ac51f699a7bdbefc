"""Packing experts by load: with copies of the busiest, and within nodes."""

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


def pack_nodes(
  load_E: np.ndarray,
  ranks: int,
  nodes: int,
  *,
  groups: int | None = None,
  slots: int | None = None,
) -> np.ndarray:
  """int [slots]: the expert of each slot, groups of experts never parted.

  First groups go to nodes, as `pack` does by their load. Then each node gives
  its slots to its own experts, busy ones several (`replicas`), and packs them
  onto its ranks. So all copies of an expert, and all experts of a group, are
  on one node: routing that keeps to few groups keeps to few nodes. The k-th run
  of slots / P is for rank k, and neighbouring ranks make a node. On one node it
  is `pack` of `replicas`. Without copies it is an order for `permute`; a router
  that is limited to groups is the same in it where nodes have one group each.
  Source: 2412.19437 sec. 3.4, and the balancer published with it.

  Args:
    load_E: of each expert; groups are runs of neighbours.
    ranks: P.
    nodes: equal numbers of ranks.
    groups: equal numbers of experts; None for one on each node.
    slots: of all ranks; None for one for each expert.

  Raises:
    ValueError: something does not divide, or slots are fewer than experts.
  """
  load_E = np.asarray(load_E, np.float64)
  experts = len(load_E)
  groups, slots = groups or nodes, slots or experts
  for what, size, over, parts in (
    ('experts', experts, 'groups', groups),
    ('groups', groups, 'nodes', nodes),
    ('ranks', ranks, 'nodes', nodes),
    ('slots', slots, 'ranks', ranks),
  ):
    if size % parts:
      raise ValueError(
        f'{size} {what} cannot be spread evenly over {parts} {over}; use a '
        'divisor.'
      )
  group_GE = np.arange(experts).reshape(groups, -1)
  placed = []
  for own in pack(load_E[group_GE].sum(1), nodes).reshape(nodes, -1):
    expert_N = group_GE[own].reshape(-1)
    copy_S = expert_N[replicas(load_E[expert_N], slots // nodes)]
    each_S = load_E[copy_S] / np.bincount(copy_S)[copy_S]
    placed.append(copy_S[pack(each_S, ranks // nodes)])
  return np.concatenate(placed)


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
