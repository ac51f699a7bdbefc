"""Bytes that an exchange sends, by formula.

All are of one device and one layer, by kind of collective as XLA names them, by
the algorithms on a ring that need the least: of n devices that hold b bytes
each, all-gather (n - 1) b, all-to-all and reduce-scatter (n - 1) / n b.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from moejax.dispatch.segments import LANES

_WEIGHT = _ID = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Layer:
  """What the bytes of a layer depend on.

  Attributes:
    tokens: N, of one device.
    k: experts per token.
    width: D.
    num_experts: E.
    ranks: P, devices that hold all experts together.
    itemsize: bytes of a number of the tokens.
    backward: whether the gradient's bytes are counted too.
  """

  tokens: int
  k: int
  width: int
  num_experts: int
  ranks: int
  itemsize: int = 2
  backward: bool = True

  @property
  def row_bytes(self) -> int:
    return self.width * self.itemsize


def ring(layer: Layer) -> dict[str, float]:
  """Tokens and choices there, sums back; the gradient of each the other way."""
  away = (layer.ranks - 1) * layer.tokens
  row, choices = layer.row_bytes, layer.k
  gathered = row + choices * (_ID + _WEIGHT)
  scattered = row
  if layer.backward:
    gathered += row
    scattered += row + choices * _WEIGHT
  return {'all-gather': away * gathered, 'reduce-scatter': away * scattered}


def dense(
  layer: Layer, rows: int, num_rounds: int = 1, stages: int = 1
) -> dict[str, float]:
  """`rows` for each pair of ranks and round: full or not, they are sent."""
  per_row = _per_row(layer, _ID + _WEIGHT, num_rounds)
  return {'all-to-all': stages * (layer.ranks - 1) * rows * per_row}


def ragged(
  layer: Layer, num_rounds: int = 1, stages: int = 1
) -> dict[str, float]:
  """Choices that leave a device, spread evenly, and the counts of all.

  Weights go by lines, of which those for a rank may be one more than full. Each
  round counts as if it sent all of both; in fact each travels once.
  """
  away = (layer.ranks - 1) / layer.ranks
  choices = layer.tokens * layer.k
  rows = choices * _per_row(layer, 0, num_rounds, 0)
  trips = sum(_line_trips(layer, num_rounds))
  weights = stages * trips * _line_bytes(layer, choices // stages)
  return {
    'all-gather': _counts(layer, stages),
    'ragged-all-to-all': away * (rows + weights),
  }


def emulated(
  layer: Layer, rows: int, num_rounds: int = 1, stages: int = 1
) -> dict[str, float]:
  """What takes the place of `ragged` on CPUs, with buffers of `rows`.

  All rows go to all. Rows that leave their device are the same in every round,
  and the compiler sends them once; weights and what comes back are not.
  """
  there = back = layer.row_bytes * (2 if layer.backward else 1)
  sent = layer.tokens * layer.k * there + stages * num_rounds * rows * back
  out, home = _line_trips(layer, num_rounds)
  choices = layer.tokens * layer.k // stages
  sent += stages * out * _line_bytes(layer, choices)
  sent += stages * home * _line_bytes(layer, rows)
  return {'all-gather': (layer.ranks - 1) * sent + _counts(layer, stages)}


def two_hops(
  layer: Layer,
  nodes: int,
  rows: tuple[int, int],
  num_rounds: int = 1,
  stages: int = 1,
) -> dict[str, float]:
  """`rows` for each pair of nodes, and then of the ranks of a node.

  A row of the first hop has all of its token's choices. Rounds are those of the
  first hop, each with one of the second. `between` is the part of the bytes
  that goes from node to node, `all-to-all` all of them.
  """
  over = _per_row(layer, _ID + _WEIGHT, num_rounds, layer.k)
  within = _per_row(layer, _ID + _WEIGHT, num_rounds)
  between = stages * (nodes - 1) * rows[0] * over
  inside = stages * (layer.ranks // nodes - 1) * rows[1] * within
  return {'all-to-all': between + inside, 'between': between}


def crossings(
  ids_NK: np.ndarray, node_N: np.ndarray, num_experts: int, nodes: int
) -> np.ndarray:
  """int [N]: nodes, other than its own, that a token goes to.

  It is what its row costs between nodes if it travels once to each, and at most
  the groups that node-limited routing keeps.  Source: 2505.09343 sec. 4.3.

  Args:
    ids_NK: the experts of each token; E for none.
    node_N: where each token is.
    num_experts: E, of which the first E / nodes are on the first node.
    nodes: how many.

  Raises:
    ValueError: the nodes do not divide the experts.
  """
  if num_experts % nodes:
    raise ValueError(
      f'{num_experts} experts cannot be spread evenly over {nodes} nodes; use '
      'a divisor.'
    )
  ids_NK = np.asarray(ids_NK)
  goes_NV = (
    ids_NK[..., None] // (num_experts // nodes) == np.arange(nodes)
  ).any(1)
  own_NV = np.asarray(node_N)[:, None] == np.arange(nodes)
  return (goes_NV & ~own_NV).sum(1)


def _counts(layer, stages):
  slots = math.lcm(layer.num_experts, layer.ranks)
  return stages * (layer.ranks - 1) * slots * 4


def _line_trips(layer, num_rounds):
  """How often lines of weights go out, and their gradients home."""
  if not layer.backward:
    return num_rounds, 0
  return 2 * num_rounds - 1, num_rounds


def _line_bytes(layer, numbers):
  """Of lines for so many numbers, each rank's last one filled up."""
  return (numbers // LANES + layer.ranks) * LANES * _WEIGHT


def _per_row(layer, label, num_rounds, choices=1):
  """Bytes of a row in all its trips; further rounds are run again backward."""
  row = layer.row_bytes
  there, back = row + choices * label, row
  if not layer.backward:
    return num_rounds * (there + back)
  once = there + 3 * back + choices * _WEIGHT
  return num_rounds * once + (num_rounds - 1) * there
