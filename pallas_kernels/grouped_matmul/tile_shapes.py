"""Tiles of the TPU kernels: which are legal, what they cost, which to take.

Of a tile that several groups share, each multiplies only the parts that hold
its rows (`row_parts`). Each of the E - 1 boundaries of groups lies in at most
one part, which two groups then multiply (an empty group multiplies nothing),
so R rows are computed as at most

  R + (E - 1) rows_of_a_part + (less than one part at the end)

rows, whatever the sizes and the tile: the wasted share is less than the part
over the mean group, for parts of 64 rows 3 % of 2048. Larger tiles cost
nothing in that, but none is larger than the mean group, as most would be cut.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from pallas_kernels import chips
from pallas_kernels.chips import Chip
from pallas_kernels.grouped_matmul import row_parts
from pallas_kernels.tune import store

LANES = 128
MOST_ROWS = 1024
STEP_S = 0.35e-6  # what a grid step costs beside its work
# Of the fast memory: the rest is the compiler's.
USABLE = 0.9
# Larger tiles move hardly less, take long to compile, and leave the compiler
# no fast memory to keep other arrays in; they are legal but never proposed.
MOST_BYTES = 48 * chips.MIB
# What a kernel is allowed beyond what it is thought to need: the compiler has
# been seen to take a seventh more.
LIMIT = 1.25
# The compiler gives a kernel this much unless told otherwise.
GIVEN_BYTES = 16 * chips.MIB


@dataclasses.dataclass(frozen=True)
class TileShape:
  """Lengths of a tile along the three axes of x [R, D] times w [E, D, F]."""

  rows: int
  d: int
  f: int

  def axes(self, form: str) -> tuple[int, int]:
    """The lengths along the contracted and the other axis of NN and NT."""
    return (self.d, self.f) if form == 'nn' else (self.f, self.d)


@dataclasses.dataclass(frozen=True)
class Problem:
  """One product: its form, sizes and dtype."""

  form: str
  rows: int
  groups: int
  d: int
  f: int
  itemsize: int

  @classmethod
  def of(cls, form, a, b, sizes_E) -> Problem:
    """From the arguments of `nn`, `nt` or `tn`."""
    d, f = b.shape[1:] if form != 'tn' else (a.shape[1], b.shape[1])
    return cls(form, a.shape[0], sizes_E.shape[0], d, f, a.dtype.itemsize)

  @property
  def axes(self) -> tuple[int, int]:
    """Lengths of the contracted and the other axis of NN and NT."""
    return (self.d, self.f) if self.form == 'nn' else (self.f, self.d)

  @property
  def flops(self) -> int:
    """Of all rows, in groups without padding."""
    return 2 * self.rows * self.d * self.f

  def key(self, chip: Chip) -> store.Key:
    """What measured tiles are found by."""
    dtype = {2: 'bfloat16', 4: 'float32'}[self.itemsize]
    return store.Key(chip.name, self.rows, self.groups, self.d, self.f, dtype)

  @property
  def least_rows(self) -> int:
    """Rows of the smallest tile: one packed register, or all there are."""
    return min(self.rows, 32 // self.itemsize)


OP = 'grouped_matmul.mosaic_tpu'


def choose_tiles(problem: Problem, chip: Chip | str | None = None) -> TileShape:
  """The tiles that were measured to be fastest, else those of `modelled`."""
  p, chip = problem, chips.current('tpu', chip)
  found = store.tuned(OP, p.form, p.key(chip))
  if found is None:
    return modelled(p, chip)
  return settle(p, store.build(TileShape, found), chip)


def modelled(problem: Problem, chip: Chip | str | None = None) -> TileShape:
  """The legal tiles that a model of the chip finds fastest.

  Modelled: matrix units work on whole multiples of their size and take as long
  to load a matrix as to multiply it by as many rows; a step lasts as long as
  its product or as the transfer of what the next one needs; two cores share
  the blocks of the output's columns. Nothing is measured here.
  """
  return candidates(problem, chips.current('tpu', chip))[0]


@functools.lru_cache(maxsize=4096)
def candidates(problem: Problem, chip: Chip) -> tuple[TileShape, ...]:
  """Legal tiles worth trying, never empty; the model's best come first."""
  p = problem
  found = (
    TileShape(r, d, f)
    for r in _row_tiles(p, chip)
    for d in _cuts(p.d)
    for f in _cuts(p.f)
  )
  room = min(room_bytes(chip), MOST_BYTES)
  found = [t for t in found if needed_bytes(p, t) <= room]
  found.sort(key=lambda t: (_seconds(p, t, chip), needed_bytes(p, t)))
  least = TileShape(p.least_rows, min(p.d, LANES), min(p.f, LANES))
  return tuple(found) or (least,)


def _row_tiles(p: Problem, chip: Chip) -> list[int]:
  """From one register to the mean group, in powers of two."""
  # TN contracts rows: fewer than fill the matrix unit would not be faster.
  full = chip.matrix_unit if p.form == 'tn' else 1
  most = min(MOST_ROWS, max(p.rows // p.groups, p.least_rows, full))
  if p.rows <= most:
    return [p.rows]
  rows = [p.least_rows]
  while 2 * rows[-1] <= most:
    rows.append(2 * rows[-1])
  return rows


def _cuts(length: int) -> list[int]:
  """The whole axis, and even parts of it in whole registers."""
  lanes = -(-length // LANES)
  parts = {-(-lanes // n) * LANES for n in range(2, lanes + 1)}
  return [length] + sorted(c for c in parts if c < length)


def settle(
  problem: Problem, tiles: TileShape | None, chip: Chip | str | None
) -> TileShape:
  """`tiles`, cut to the problem and checked, or the choice of the model.

  Raises:
    ValueError: the tiles are not whole registers, or do not fit the chip.
  """
  if tiles is None:
    return choose_tiles(problem, chip)
  p, chip = problem, chips.current('tpu', chip)
  rules = (
    ('rows', tiles.rows, p.rows, 32 // p.itemsize),
    ('d', tiles.d, p.d, LANES),
    ('f', tiles.f, p.f, LANES),
  )
  for name, tile, whole, step in rules:
    if tile < 1 or (tile < whole and tile % step):
      raise ValueError(
        f'grouped_matmul ({p.form}): a tile of {tile} along {name} is neither '
        f'a multiple of {step} nor all {whole}; take {-(-tile // step) * step}.'
      )
  tiles = TileShape(
    min(tiles.rows, p.rows), min(tiles.d, p.d), min(tiles.f, p.f)
  )
  needed, room = needed_bytes(p, tiles), room_bytes(chip)
  if needed > room:
    raise ValueError(
      f'grouped_matmul ({p.form}): {tiles} needs {needed} bytes of fast memory '
      f'and {chip.name} has {room} for it; {_smaller(p, tiles, chip)} fits '
      f'(chips.target names another chip).'
    )
  return tiles


def _smaller(p: Problem, tiles: TileShape, chip: Chip) -> TileShape:
  """Tiles that fit, by halving the longest axis."""
  while needed_bytes(p, tiles) > room_bytes(chip):
    least = dict(rows=p.least_rows, d=LANES, f=LANES)
    can = [n for n in least if getattr(tiles, n) > least[n]]
    name = max(can, key=lambda n: getattr(tiles, n))
    step = least[name]
    half = -(-getattr(tiles, name) // (2 * step)) * step
    tiles = dataclasses.replace(tiles, **{name: half})
  return tiles


def room_bytes(chip: Chip) -> int:
  """What a kernel may take of one core's fast memory."""
  return int(USABLE * chip.fast_bytes)


def needed_bytes(problem: Problem, tiles: TileShape) -> int:
  """Fast memory that a kernel takes with these tiles.

  Blocks of all operands are there twice, as one is moved while the other is
  worked on; a product is there in f32 before it is stored, and where it is
  summed over several steps, the sum too. The compiler takes up to 7 % more.
  """
  p, size = problem, problem.itemsize
  rows = _up(tiles.rows, 32 // size)
  d, f = _up(tiles.d, LANES), _up(tiles.f, LANES)
  blocks = 2 * size * (rows * d + rows * f + d * f)
  if p.form == 'tn':
    return blocks + 4 * d * f + size * rows * d  # x is transposed
  inner, outer = TileShape(rows, d, f).axes(p.form)
  several = tiles.axes(p.form)[0] < p.axes[0]
  return blocks + 4 * rows * outer * (1 + several)


def limit_bytes(problem: Problem, tiles: TileShape, chip: Chip) -> int | None:
  """What to ask of the compiler, `None` for what it gives unasked."""
  needed = needed_bytes(problem, tiles) / USABLE
  return (
    None if needed <= GIVEN_BYTES else min(int(LIMIT * needed), chip.fast_bytes)
  )


def traffic_bytes(problem: Problem, tiles: TileShape) -> int:
  """Bytes moved between main and fast memory, were all groups equal."""
  p, t = problem, tiles
  visits = _visits(p, t)
  if p.form == 'tn':
    d_tiles, f_tiles = -(-p.d // t.d), -(-p.f // t.f)
    read = visits * t.rows * (p.d * f_tiles + p.f * d_tiles)
    return int(p.itemsize * (read + p.groups * p.d * p.f))
  (inner, outer), (k, c) = p.axes, t.axes(p.form)
  c_tiles = -(-outer // c)
  # With the whole contracted axis in one block, what the next step shares with
  # this one is not read again.
  if k == inner:
    read = p.rows * inner * c_tiles + p.groups * inner * outer
  else:
    read = visits * (t.rows * inner * c_tiles + inner * outer)
  return int(p.itemsize * (read + p.rows * outer))


def _visits(p: Problem, t: TileShape) -> float:
  """Expected for groups that begin anywhere in a tile."""
  return p.rows / t.rows + (p.groups - 1) * (1 - 1 / t.rows)


def _products(p: Problem, t: TileShape) -> tuple[float, float]:
  """Expected products of a visit, and the rows of one.

  A visit that does not own its tile makes one for about every other binary
  digit of the number of parts.
  """
  part, visits = row_parts.part_rows(t.rows, p.itemsize), _visits(p, t)
  cut = min(1, 2 * (p.groups - 1) * (1 - 1 / t.rows) / visits)
  products = 1 + cut * math.log2(t.rows / part) / 2
  rows = (p.rows + (p.groups - 1) * (part - 1)) / visits
  return products, rows / products


def _seconds(p: Problem, t: TileShape, chip: Chip) -> float:
  """Modelled time of a kernel."""
  unit, visits = chip.matrix_unit, _visits(p, t)
  products, rows = _products(p, t)
  per_byte = p.itemsize / chip.memory_bytes_per_s
  # f32 takes at least as many passes as there are bf16 numbers in it.
  per_flop = p.itemsize / 2 / chip.flops_per_s
  if p.form == 'tn':
    steps = -(-p.d // t.d) * -(-p.f // t.f)
    work = 2 * max(rows, unit) * (_up(t.d, 8) + unit) * _up(t.f, unit)
    often = t.rows * (t.d + t.f) * per_byte
    seldom, changes = t.d * t.f * per_byte, p.groups
    blocks = steps
  else:
    (inner, outer), (k, c) = p.axes, t.axes(p.form)
    k_tiles, blocks = -(-inner // k), -(-outer // c)
    steps = k_tiles * blocks
    work = 2 * (max(rows, 8) + unit) * _up(k, unit) * _up(c, unit)
    often = t.rows * (k + c / k_tiles) * per_byte
    seldom = k * c * per_byte
    changes = min(p.groups, visits) if k_tiles == 1 else visits
  even = -(-blocks // chip.cores) * chip.cores / blocks
  work *= products * per_flop * even
  changing = changes * max(work, often + seldom)
  rest = (visits - changes) * max(work, often)
  overhead = visits * STEP_S / chip.cores
  return often + seldom + steps * (changing + rest + overhead)


def _up(n: int, step: int) -> int:
  return -(-n // step) * step
