"""Tiles of the feed-forward's TPU kernels, by what else is in fast memory.

Which tiles there are and how fast they make a product is told by
`grouped_matmul.tile_shapes`. A kernel here holds more: several matrices, what
is read at the end of the product, and all that is written.
"""

from __future__ import annotations

import dataclasses

from pallas_kernels import chips
from pallas_kernels.chips import Chip
from pallas_kernels.grouped_matmul import tile_shapes
from pallas_kernels.grouped_matmul.tile_shapes import LANES, Problem, TileShape
from pallas_kernels.tune import store

OP = 'expert_ffn.mosaic_tpu'


@dataclasses.dataclass(frozen=True)
class Fused:
  """A product of rows with matrices, and what follows it, in one kernel.

  Attributes:
    name: of the kernel, in the store too.
    problem: the product with one matrix.
    matrices: how many share the rows.
    matrix_bytes: of an element; blocks are cast to the dtype of the rows.
    arrays: with a row of the result's width, read or written.
    values: f32, as many numbers as the result, that are there at once beside
      the products.
  """

  name: str
  problem: Problem
  matrices: int
  matrix_bytes: int
  arrays: int
  values: int

  @property
  def flops(self) -> int:
    return self.matrices * self.problem.flops

  def needed_bytes(self, tiles: TileShape) -> int:
    """Fast memory that the kernel takes; see `tile_shapes.needed_bytes`."""
    p = self.problem
    rows = _up(tiles.rows, 32 // p.itemsize)
    k, c = (_up(n, LANES) for n in tiles.axes(p.form))
    several = tiles.axes(p.form)[0] < p.axes[0]
    blocks = p.itemsize * rows * (k + self.arrays * c)
    blocks += self.matrix_bytes * self.matrices * k * c
    cast = p.itemsize * k * c if self.matrix_bytes != p.itemsize else 0
    sums = self.matrices * (1 + several) + self.values
    return 2 * blocks + cast + 4 * rows * c * sums

  def traffic_bytes(self, tiles: TileShape) -> int:
    """Bytes moved between main and fast memory, were all groups equal."""
    p = self.problem
    inner, outer = p.axes
    product = tile_shapes.traffic_bytes(p, tiles)
    one = p.itemsize * p.groups * inner * outer
    matrices = self.matrices * self.matrix_bytes * p.groups * inner * outer
    return (
      product - one + matrices + p.itemsize * p.rows * outer * (self.arrays - 1)
    )

  def choose(self, chip: Chip | str | None = None) -> TileShape:
    """The tiles that were measured, else the first of `candidates`."""
    chip = chips.current('tpu', chip)
    # D is contracted and F is not, whatever a form calls them.
    d, f = self.problem.axes
    key = dataclasses.replace(self.problem, d=d, f=f).key(chip)
    found = store.tuned(OP, self.name, key)
    if found is None:
      return self.candidates(chip)[0]
    tiles = store.build(TileShape, found)
    return tile_shapes.settle(self.problem, tiles, chip)

  def candidates(self, chip: Chip) -> list[TileShape]:
    """Never empty; the fastest for the product alone that leave room first."""
    room = min(tile_shapes.room_bytes(chip), tile_shapes.MOST_BYTES)
    found = tile_shapes.candidates(self.problem, chip)
    fits = [t for t in found if self.needed_bytes(t) <= room]
    return fits or [min(found, key=self.needed_bytes)]

  def limit_bytes(self, tiles: TileShape, chip: Chip) -> int | None:
    """What to ask of the compiler, `None` for what it gives unasked."""
    needed = self.needed_bytes(tiles) / tile_shapes.USABLE
    if needed <= tile_shapes.GIVEN_BYTES:
      return None
    return min(int(tile_shapes.LIMIT * needed), chip.fast_bytes)


def _up(n: int, step: int) -> int:
  return -(-n // step) * step
