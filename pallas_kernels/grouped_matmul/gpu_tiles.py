"""Tile sizes of the GPU kernels: what fits, what is likely fast."""

from __future__ import annotations

import dataclasses
import itertools

import jax.numpy as jnp

# Bytes of shared memory that one program may ask for on an H100 or H200.
SHARED_BYTES = 232_448


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

  def shared_bytes(self, itemsize: int, products: int = 1) -> int:
    """What the blocks in flight take when one left side meets `products`."""
    columns = self.block_m + products * self.block_n
    return self.num_stages * self.block_k * columns * itemsize

  def refuses(self, itemsize: int, products: int = 1) -> str | None:
    """Why the tiles do not fit the chip, or `None`."""
    need = self.shared_bytes(itemsize, products)
    if need > SHARED_BYTES:
      return (
        f'{self} needs {need} bytes of shared memory for {products} '
        f'product(s) of {itemsize}-byte numbers and the chip has '
        f'{SHARED_BYTES}; lower num_stages or a block'
      )
    return None


def _power_of_2(n: int, low: int, high: int) -> int:
  """The smallest power of 2 that is at least n, between `low` and `high`."""
  return min(max(1 << max(n - 1, 0).bit_length(), low), high)


def choose_tiles(
  m: int, n: int, k: int, dtype, *, products: int = 1
) -> Tiles:
  """Tiles by rule, for m rows (the mean of a group), n columns, k contracted.

  The rules are those of dense products on Hopper: as much of the register
  file for the result as goes without spilling (128 x 256 numbers for 8
  warps, 128 x 128 for 4), and as many stages as shared memory takes. A short
  contraction prefers two small programs at a time on each multiprocessor:
  one multiplies while the other stores.
  """
  if jnp.dtype(dtype).itemsize > 2:
    # No tensor cores: products of f32 are exact to f32, see pallas_gpu.
    block_m = _power_of_2(m, 16, 64)
    block_n = _power_of_2(n, 16, 64 if products == 1 else 32)
    return Tiles(block_m, block_n, 16, num_warps=4, num_stages=2)
  block_m = _power_of_2(m, 16, 128)
  wide = 256 if products == 1 and k > 512 and block_m == 128 else 128
  block_n = _power_of_2(n, 16, wide)
  block_k = _power_of_2(k, 16, 64)
  large = block_m * block_n * products > 128 * 128
  return Tiles(block_m, block_n, block_k, 8 if large else 4, 3)


def candidates(
  m: int, n: int, k: int, dtype, *, products: int = 1
) -> tuple[Tiles, ...]:
  """The choice by rule first, then others that fit, for an autotuner."""
  first = choose_tiles(m, n, k, dtype, products=products)
  itemsize = jnp.dtype(dtype).itemsize
  sizes = (32, 64) if itemsize > 2 else (64, 128, 256)
  depths = (16, 32) if itemsize > 2 else (32, 64, 128)
  found = [first]
  for block_m, block_n, block_k, warps, stages in itertools.product(
    sizes, sizes, depths, (4, 8), (2, 3, 4)
  ):
    tiles = Tiles(block_m, block_n, block_k, warps, stages)
    # The result in registers: at most 128 a thread, and no idle warps.
    numbers = block_m * block_n * products / (32 * warps)
    too_large = (
      block_m > _power_of_2(2 * m, 16, 256)
      or block_n > _power_of_2(n, 16, 256)
      or block_k > _power_of_2(k, 16, 128)
    )
    if too_large or not 16 <= numbers <= 128 or tiles in found:
      continue
    if tiles.refuses(itemsize, products) is None:
      found.append(tiles)
  return tuple(found)
