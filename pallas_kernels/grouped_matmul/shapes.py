"""Named shapes, shared by tests and benchmarks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
  """`rows` may exceed the sum of `sizes`: the rest belong to no group."""

  rows: int
  d: int
  f: int
  sizes: tuple[int, ...]


SMALL = {
  'smoke': Shape(16, 8, 12, (4, 4, 4, 4)),
  'one row': Shape(1, 5, 3, (0, 1, 0)),
  'one row of no group': Shape(1, 5, 3, (0, 0)),
  'one group': Shape(70, 8, 8, (70,)),
  'all in one of many': Shape(130, 8, 16, (0, 0, 130, 0)),
  'empty groups': Shape(96, 12, 8, (0, 50, 0, 0, 46, 0)),
  'odd': Shape(101, 100, 37, (1, 33, 0, 67)),
  'rows past the end': Shape(90, 16, 8, (7, 0, 30)),
  'no rows in any group': Shape(10, 4, 4, (0, 0, 0)),
  'larger than a tile': Shape(1300, 8, 8, (3, 1100, 65, 64, 63)),
}
