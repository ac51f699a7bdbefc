"""The rows of a tile that a group owns, in pieces of static sizes.

A tile is cut into equal parts. The parts that hold rows of a group lie side by
side; as many as the binary digits of their number say are taken at a time, so
that a kernel has code for few sizes and loads a matrix few times.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

# Half the side of most matrix units: all pieces but the smallest then fill one.
# Smaller ones would multiply fewer rows, and take as long.
PART_ROWS = 64


def part_rows(rows: int, itemsize: int) -> int:
  """The part of a tile of `rows` rows: whole registers, or the whole tile."""
  part = math.gcd(rows, PART_ROWS)
  return part if part >= 32 // itemsize else rows


def pieces(begin, end, rows: int, part: int):
  """Cuts the parts of a tile that overlap [begin, end).

  Args:
    begin: int32 scalar, may be negative.
    end: int32 scalar, more than `begin`, may exceed `rows`.
    rows: of the tile.
    part: a divisor of `rows`.

  Returns:
    A list of (start, size, present): `size` is static; the pieces of which
    `present` holds are disjoint and cover exactly the overlapping parts. All
    sizes together are `rows` if the parts are a power of two, else less than
    twice that.
  """
  parts = rows // part
  # (`//` would ask the host for its chip, to find the sign.)
  first = lax.div(jnp.maximum(begin, 0), jnp.int32(part))
  last = lax.div(jnp.minimum(end, rows) + part - 1, jnp.int32(part))
  count = last - first
  start, found = first * part, []
  # All parts are all but one and one more: no size is the whole tile.
  digits = jnp.minimum(count, parts - 1)
  for digit in reversed(range((parts - 1).bit_length())):
    present = (digits & 2**digit) != 0
    found.append((pl.multiple_of(start, part), part * 2**digit, present))
    start += jnp.where(present, part * 2**digit, 0)
  found.append((pl.multiple_of(start, part), part, count == parts))
  return found
