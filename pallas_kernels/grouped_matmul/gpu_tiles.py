"""Tile sizes of the GPU kernels: what fits, what is likely fast."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp

from pallas_kernels import chips
from pallas_kernels.tune import store

# Bytes of shared memory that one program may ask for.
SHARED_BYTES = chips.SMALLEST['cuda'].fast_bytes


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Sizes of one matrix product in a kernel; blocks are powers of 2 from 16.

  Attributes:
    block_m: rows of the result that one program computes.
    block_n: its columns, of each matrix if the kernel multiplies by two.
    block_k: how much of the contracted axis is in shared memory at a time.
    num_warps: of 32 threads; 4 of them issue one tensor core instruction.
    num_stages: blocks in flight between device and shared memory.
  """

  block_m: int
  block_n: int
  block_k: int
  num_warps: int = 4
  num_stages: int = 3

  def __post_init__(self):
    for name in ('block_m', 'block_n', 'block_k'):
      size = getattr(self, name)
      if size < 16 or size & (size - 1):
        raise ValueError(
          f'Tiles: {name}={size}; it must be a power of 2 and at least 16.'
        )

  def shared_bytes(self, itemsize: int, lefts: int = 1, rights: int = 1) -> int:
    """What the blocks in flight take: of so many left and right sides."""
    lines = lefts * self.block_m + rights * self.block_n
    return self.num_stages * self.block_k * lines * itemsize

  def refuses(
    self, itemsize: int, lefts: int = 1, rights: int = 1
  ) -> str | None:
    """Why the tiles do not fit the chip, or `None`."""
    need = self.shared_bytes(itemsize, lefts, rights)
    if need > SHARED_BYTES:
      return (
        f'{self} needs {need} bytes of shared memory, with {lefts} left and '
        f'{rights} right side(s) of {itemsize}-byte numbers, and the chip has '
        f'{SHARED_BYTES}; lower num_stages or a block'
      )
    return None


@dataclasses.dataclass(frozen=True)
class Product:
  """What tiles are chosen for.

  Attributes:
    m: rows of the result; the mean of a group.
    n: its columns.
    k: the contracted axis.
    dtype: of the factors.
    lefts: left sides, each with a right side of its own, summed.
    rights: right sides of one left side, or as many as `lefts`.
    heavy: whether much is computed from the result before it is written.
  """

  m: int
  n: int
  k: int
  dtype: jnp.dtype
  lefts: int = 1
  rights: int = 1
  heavy: bool = False

  @property
  def results(self) -> int:
    return self.rights if self.lefts == 1 else 1

  def refuses(self, tiles: Tiles) -> str | None:
    """Why these tiles do not fit the chip, or `None`."""
    itemsize = jnp.dtype(self.dtype).itemsize
    return tiles.refuses(itemsize, self.lefts, self.rights)


def _power_of_2(n: int, low: int, high: int) -> int:
  """The smallest power of 2 that is at least n, between `low` and `high`."""
  return min(max(1 << max(n - 1, 0).bit_length(), low), high)


def choose_tiles(p: Product) -> Tiles:
  """Tiles by rule.

  The rules are those of dense products on Hopper: as much of the register
  file for the result as goes without spilling (128 x 256 numbers for 8
  warps, 128 x 128 for 4), and as many stages as shared memory takes. A short
  contraction prefers two small programs at a time on each multiprocessor:
  one multiplies while the other stores.
  """
  if jnp.dtype(p.dtype).itemsize > 2:
    # No tensor cores: products of f32 are exact to f32, see pallas_gpu.
    block_m = _power_of_2(p.m, 16, 64)
    block_n = _power_of_2(p.n, 16, 64 if p.results == 1 else 32)
    return Tiles(block_m, block_n, 16, num_warps=4, num_stages=2)
  block_m = _power_of_2(p.m, 16, 128)
  plain = p.lefts == p.rights == 1 and not p.heavy
  wide = plain and block_m == 128 and p.k > 512
  block_n = _power_of_2(p.n, 16, 256 if wide else 128)
  block_k = _power_of_2(p.k, 16, 64 // p.lefts)
  numbers = block_m * block_n * p.results * (2 if p.heavy else 1)
  if numbers <= 128 * 128:
    return Tiles(block_m, block_n, block_k, num_warps=4, num_stages=3)
  return Tiles(block_m, block_n, block_k, num_warps=8, num_stages=4)


def candidates(p: Product) -> tuple[Tiles, ...]:
  """The choice by rule first, then others that fit, for an autotuner."""
  found = [choose_tiles(p)]
  exact = jnp.dtype(p.dtype).itemsize > 2
  sizes = (32, 64) if exact else (64, 128, 256)
  depths = (16, 32) if exact else (32, 64, 128)
  most = 64 if p.heavy else 128
  for block_m, block_n, block_k, warps, stages in itertools.product(
    sizes, sizes, depths, (4, 8), (2, 3, 4)
  ):
    tiles = Tiles(block_m, block_n, block_k, warps, stages)
    too_large = (
      block_m > _power_of_2(2 * p.m, 16, 256)
      or block_n > _power_of_2(p.n, 16, 256)
      or block_k > _power_of_2(p.k, 16, 128)
    )
    # Of the result, what a thread can hold, and enough that none is idle.
    numbers = block_m * block_n * p.results / (32 * warps)
    if too_large or not 16 <= numbers <= most or tiles in found:
      continue
    if p.refuses(tiles) is None:
      found.append(tiles)
  return tuple(found)


def settle(
  op: str,
  form: str,
  sizes: tuple[int, int, int, int],
  tiles: Tiles | None,
  p: Product,
) -> Tiles:
  """The tiles given, else those measured, else those by rule.

  Args:
    op: name of the operation in the store.
    form: which of its products.
    sizes: rows, groups, D, F; what was measured is found by them.
    tiles: as given, or `None`.
    p: the product.

  Raises:
    ValueError: the tiles need more shared memory than the chip has.
  """
  if tiles is None:
    dtype = jnp.dtype(p.dtype).name
    key = store.Key(chips.current('cuda').name, *sizes, dtype)
    found = store.tuned(op, form, key)
    tiles = choose_tiles(p) if found is None else store.build(Tiles, found)
  reason = p.refuses(tiles)
  if reason is not None:
    raise ValueError(f'{reason}.')
  return tiles
