"""A training state on another number of devices, moved and not copied."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from moejax.optim.parameters import slashed
from moejax.placement.pack import held_by_each
from moejax.placement.permute import expert_axis


@dataclasses.dataclass(frozen=True)
class Resized:
  """What `resize` did.

  Attributes:
    state: on the new devices; it may share buffers with the old one.
    orders: of the experts of each mixture that were renumbered, as `permute`
      takes them; `inverse` undoes one.
    sent_bytes: what went from a device to another, by the receiver's id.
    kept_bytes: what a device needs and had; likewise.
  """

  state: Any
  orders: dict[str, np.ndarray]
  sent_bytes: dict[int, int]
  kept_bytes: dict[int, int]


def resize(
  state: Any,
  target: Any,
  names: Any,
  *,
  keep: bool = True,
  lost: Sequence[jax.Device] = (),
) -> Resized:
  """Brings a live training state onto other devices, bit by bit the same.

  A device is sent what it needs and does not hold, nothing else and nothing by
  way of the host, so that the bytes sent are

    sum over devices (sum over its experts that it did not hold: bytes of an
      expert, moments included) + bytes of what is whole, if it is new.

  With `keep` experts are renumbered such that the first sum is the least that
  it can be with equal experts on all ranks: a device that stays keeps those
  that it has, as many as it may.  Source: 2510.02613, the idea alone.
  Differs: of training states; an exact assignment, which with copies of
  experts on several devices can be better than taking device after device.

  The old state is not to be used after the new one is trained on: what did not
  move is the same memory, and training gives it away.

  Args:
    state: a TrainState.
    target: the same as ShapeDtypeStructs with shardings on the new devices,
      such as `Parts.abstract_state` of the new mesh.
    names: the same of tuples of logical axis names, `Parts.state_names`.
    keep: whether experts may be renumbered. A router that is limited to groups
      of neighbours needs False.
    lost: devices of the old mesh that do not answer any more.

  Raises:
    ValueError: a part is on lost devices alone, or on those of another process;
      shapes differ.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
  paths = [slashed(keys) for keys, _ in leaves]
  leaves = [leaf for _, leaf in leaves]
  wanted = treedef.flatten_up_to(target)
  names = treedef.flatten_up_to(names)
  for path, leaf, new in zip(paths, leaves, wanted, strict=True):
    _check(path, leaf, new)
  orders = _orders(paths, leaves, wanted, names, lost) if keep else {}
  plan = _Plan(lost)
  for i, path in enumerate(paths):
    found = [(expert_axis(path, m, names[i]), o) for m, o in orders.items()]
    found = [(axis, o) for axis, o in found if axis is not None]
    plan.add(i, path, leaves[i], wanted[i], *(found or [(None, None)])[0])
  moved = plan.move(leaves, wanted)
  return Resized(
    treedef.unflatten(moved), orders, dict(plan.sent), dict(plan.kept)
  )


def stay(held_DE: np.ndarray, rank_D: np.ndarray) -> np.ndarray:
  """int [E]: an order of experts that leaves the most of them in place.

  The k-th run of E / P experts is for the devices of rank k. Where no order is
  better, it is the one in which the experts are.

  Args:
    held_DE: bool, whether a device holds an expert already.
    rank_D: the rank of each device.

  Raises:
    ValueError: the ranks do not divide the experts.
  """
  held_DE, rank_D = np.asarray(held_DE, bool), np.asarray(rank_D)
  ranks, experts = rank_D.max() + 1, held_DE.shape[1]
  held = held_by_each(experts, ranks)
  gain_PE = np.zeros((ranks, experts))
  np.add.at(gain_PE, rank_D, held_DE)
  slots, chosen = optimize.linear_sum_assignment(
    np.repeat(gain_PE, held, axis=0), maximize=True
  )
  order = np.sort(chosen.reshape(ranks, held), axis=1).reshape(-1)
  rank = slots // held
  same = gain_PE[rank, order].sum() <= gain_PE[rank, np.arange(experts)].sum()
  return np.arange(experts) if same else order


def _check(path, leaf, new):
  if leaf.shape != new.shape or leaf.dtype != new.dtype:
    raise ValueError(
      f'{path} is {leaf.dtype}{list(leaf.shape)}, but the target '
      f'{new.dtype}{list(new.shape)}; resize changes the mesh, no more.'
    )
  if not (leaf.is_fully_addressable and new.sharding.is_fully_addressable):
    raise ValueError(
      f'{path} is spread over {jax.process_count()} processes, but a resize '
      'in memory is of one; save a checkpoint and restore it on the new mesh.'
    )


def _orders(paths, leaves, wanted, names, lost):
  """The order of each mixture of which the new mesh cuts the experts."""
  orders = {}
  for path, leaf, new, axes in zip(paths, leaves, wanted, names, strict=True):
    mixture, matrix, _ = path.rpartition('/experts/')
    if not matrix or not path.startswith('params/') or 'expert' not in axes:
      continue
    axis, experts = axes.index('expert'), leaf.shape[axes.index('expert')]
    there, here = (
      {device: box[axis] for device, box in _boxes(a).items()}
      for a in (leaf, new)
    )
    if len(set(here.values())) == 1:
      continue
    firsts = sorted({lo for lo, _ in here.values()})
    held_DE = np.zeros((len(here), experts), bool)
    for row, device in zip(held_DE, here, strict=True):
      if device in there and device not in lost:
        row[slice(*there[device])] = True
    rank_D = [firsts.index(lo) for lo, _ in here.values()]
    order = stay(held_DE, rank_D)
    if (order != np.arange(experts)).any():
      orders[mixture.removeprefix('params/')] = order
  return orders


def _boxes(a):
  """The (first, end) of each axis that each device has, or is to have."""
  return {
    device: tuple(
      s.indices(size)[:2] for s, size in zip(index, a.shape, strict=True)
    )
    for device, index in a.sharding.devices_indices_map(a.shape).items()
  }


@dataclasses.dataclass(frozen=True)
class _Piece:
  """Some of a device's shard: of `leaf`, `out` of it goes to `into` there."""

  leaf: int
  out: tuple
  into: tuple


class _Plan:
  """Which piece of which shard goes where."""

  def __init__(self, lost):
    self.lost = lost
    self.sent = collections.Counter()
    self.kept = collections.Counter()
    self.given = collections.Counter()
    # By sender and receiver; what a device has lies at (device, device).
    self.pieces = collections.defaultdict(list)
    self.shapes = collections.defaultdict(dict)  # receiver: leaf: shape

  def add(self, i, path, leaf, new, axis, order):
    """Plans one leaf; its experts along `axis`, if any, come in `order`."""
    holders = collections.defaultdict(list)
    for device, box in _boxes(leaf).items():
      if device not in self.lost:
        holders[box].append(device)
    for device, box in _boxes(new).items():
      self.shapes[device][i] = tuple(hi - lo for lo, hi in box)
      missing = int(np.prod(self.shapes[device][i]))
      for there, devices in holders.items():
        both = _overlap(there, box, axis, order)
        if both is None:
          continue
        (out, into), size = both, _size(both[0])
        missing -= size
        own = device in devices
        source = device if own else min(devices, key=self.given.__getitem__)
        size *= leaf.dtype.itemsize
        if own:
          self.kept[device.id] += size
        else:
          self.given[source] += size
        self.pieces[source, device].append(_Piece(i, out, into))
      if missing:
        raise ValueError(
          f'{missing} numbers of {path} were on lost devices alone; restore '
          'the newest checkpoint on the new mesh instead '
          '(Checkpoints.restore).'
        )

  def move(self, leaves, wanted):
    """The leaves on their new devices."""
    shards = [
      {shard.device: shard.data for shard in leaf.addressable_shards}
      for leaf in leaves
    ]
    received = self._send(shards)
    made = [{} for _ in leaves]
    for device, shapes in self.shapes.items():
      rest = {}
      for i, shape in shapes.items():
        whole = self._unchanged(device, i, shape, shards)
        if whole is None:
          rest[i] = shape
        else:
          made[i][device] = whole
      if rest:
        self._assemble(device, rest, shards, received, made)
    return [
      jax.make_array_from_single_device_arrays(
        new.shape, new.sharding, [made[i][d] for d in _boxes(new)]
      )
      for i, new in enumerate(wanted)
    ]

  def _send(self, shards):
    """{receiver: [(piece, array)]}; each sender cuts by one program."""
    received = collections.defaultdict(list)
    for source in dict.fromkeys(source for source, _ in self.pieces):
      away = [
        (to, piece)
        for (sender, to), pieces in self.pieces.items()
        if sender == source != to
        for piece in pieces
      ]
      used = {piece.leaf: shards[piece.leaf][source] for _, piece in away}

      def cut(used, away=away):
        return [used[piece.leaf][piece.out] for _, piece in away]

      for (to, piece), part in zip(away, jax.jit(cut)(used), strict=True):
        received[to].append((piece, jax.device_put(part, to)))
        self.sent[to.id] += part.nbytes
    return received

  def _unchanged(self, device, i, shape, shards):
    """The shard that a device has, if it is the one that it is to have."""
    own = [p for p in self.pieces.get((device, device), ()) if p.leaf == i]
    if len(own) != 1 or shards[i][device].shape != shape:
      return None
    whole = all(
      isinstance(a, slice) and (a.start, a.stop) == (0, size)
      for index in (own[0].out, own[0].into)
      for a, size in zip(index, shape, strict=True)
    )
    return shards[i][device] if whole else None

  def _assemble(self, device, shapes, shards, received, made):
    """Makes all that changes on a device, by one program."""
    come = [(p, a) for p, a in received[device] if p.leaf in shapes]
    own = [p for p in self.pieces.get((device, device), ()) if p.leaf in shapes]
    used = {p.leaf: shards[p.leaf][device] for p in own}

    def build(used, parts):
      parts = [*parts, *(used[p.leaf][p.out] for p in own)]
      found = {}
      for piece, part in zip([*(p for p, _ in come), *own], parts, strict=True):
        i = piece.leaf
        if i not in found:
          found[i] = jnp.zeros(shapes[i], part.dtype)
        found[i] = found[i].at[piece.into].set(part)
      return found

    for i, a in jax.jit(build)(used, [part for _, part in come]).items():
      made[i][device] = a


def _overlap(there, here, axis, order):
  """What a box of the old array has of one of the new: its places in both."""
  out, into = [], []
  for i, ((lo, hi), (first, end)) in enumerate(zip(there, here, strict=True)):
    if i == axis:
      old = order[first:end]
      (place,) = np.nonzero((old >= lo) & (old < hi))
      if not place.size:
        return None
      out.append(_run(old[place] - lo))
      into.append(_run(place))
      continue
    a, b = max(lo, first), min(hi, end)
    if a >= b:
      return None
    out.append(slice(a - lo, b - lo))
    into.append(slice(a - first, b - first))
  return tuple(out), tuple(into)


def _run(places):
  """A slice, if it is one."""
  if (np.diff(places) == 1).all():
    return slice(int(places[0]), int(places[-1]) + 1)
  return places


def _size(index):
  sizes = (a.stop - a.start if isinstance(a, slice) else a.size for a in index)
  return int(np.prod([*sizes]))
