"""Bytes that an exchange sends, by formula.

All are of one device and one layer, by kind of collective as XLA names them, by
the algorithms on a ring that need the least: of n devices that hold b bytes
each, all-gather (n - 1) b, all-to-all and reduce-scatter (n - 1) / n b.
"""

from __future__ import annotations

import dataclasses
import math

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

  Each round counts as if it sent all of them; in fact each travels once.
  """
  away = (layer.ranks - 1) / layer.ranks
  rows = layer.tokens * layer.k * _per_row(layer, _WEIGHT, num_rounds)
  return {
    'all-gather': _counts(layer, stages),
    'ragged-all-to-all': away * rows,
  }


def emulated(
  layer: Layer, rows: int, num_rounds: int = 1, stages: int = 1
) -> dict[str, float]:
  """What takes the place of `ragged` on CPUs, with buffers of `rows`.

  All rows go to all. What leaves its device is the same in every round, and the
  compiler sends it once; what comes back is not.
  """
  there, back = layer.row_bytes + _WEIGHT, layer.row_bytes
  if layer.backward:
    there, back = there + layer.row_bytes, back + layer.row_bytes + _WEIGHT
  sent = layer.tokens * layer.k * there + stages * num_rounds * rows * back
  return {'all-gather': (layer.ranks - 1) * sent + _counts(layer, stages)}


def _counts(layer, stages):
  slots = math.lcm(layer.num_experts, layer.ranks)
  return stages * (layer.ranks - 1) * slots * 4


def _per_row(layer, label, num_rounds):
  """Bytes of a row in all its trips; further rounds are run again backward."""
  row = layer.row_bytes
  there, back = row + label, row
  if not layer.backward:
    return num_rounds * (there + back)
  return num_rounds * (there + 3 * back + _WEIGHT) + (num_rounds - 1) * there
