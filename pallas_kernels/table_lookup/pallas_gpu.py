"""Rows of a table on GPU, as Triton kernels.

All are bound by the memory's speed: a program has some rows of one token on
their way at a time. No two programs write to one place, and none adds to
another's number, so that results do not depend on their order.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.grouped_matmul.gpu_parts import (
  both,
  inside,
  load,
  numbers,
  shaped,
)
from pallas_kernels.route.parts import refuses_shards

# Numbers of the rows that a program of 4 warps holds in registers.
BLOCK = 2048
COLUMNS = 256
PAIRS = 4  # of a slot, whose vectors are on their way at a time

refuses = refuses_shards


def lookup(table_SD, ids_NK, weights_NKC, *, interpret=False):
  """As the reference: a program for each token and block of columns."""
  (n, k), d = ids_NK.shape, table_SD.shape[1]
  columns, rows = _block(k, d)

  def kernel(table_ref, ids_ref, weights_ref, y_ref):
    token = pl.program_id(0)
    column = numbers(pl.program_id(1) * columns, columns)
    keep = inside(column, d, columns)

    def add(i, y):
      place = numbers(i * rows, rows)
      own = inside(place, k, rows)
      ids = _line(ids_ref, token, place, own)
      row = load(table_ref, ids, column, both(own, keep)).astype(jnp.float32)
      return y + (_wide(weights_ref, token, place, own, column) * row).sum(0)

    y = jnp.zeros(columns, jnp.float32)
    y = lax.fori_loop(0, -(-k // rows), add, y)
    plgpu.store(y_ref.at[token, column], y, mask=keep)

  args = table_SD, ids_NK, weights_NKC.astype(jnp.float32)
  return _call(
    kernel, 'table_lookup', (n, -(-d // columns)), (n, d), args, interpret
  )


def products(table_SD, ids_NK, x_ND, *, parts, interpret=False):
  """As the reference: a program for each token and block of its rows."""
  (n, k), d = ids_NK.shape, table_SD.shape[1]
  columns, rows = _block(k, d)

  def kernel(table_ref, ids_ref, x_ref, a_ref):
    token = pl.program_id(0)
    place = numbers(pl.program_id(1) * rows, rows)
    own = inside(place, k, rows)
    ids = _line(ids_ref, token, place, own)

    def add(i, sums):
      column = numbers(i * columns, columns)
      keep = inside(column, d, columns)
      row = load(table_ref, ids, column, both(own, keep)).astype(jnp.float32)
      x = _line(x_ref, token, column, keep).astype(jnp.float32)
      product = row * x[None, :]
      part = lax.rem(column, jnp.int32(parts))[None, :]
      return tuple(
        total + jnp.where(part == c, product, 0).sum(1)
        for c, total in enumerate(sums)
      )

    sums = (jnp.zeros(rows, jnp.float32),) * parts
    sums = lax.fori_loop(0, -(-d // columns), add, sums)
    for c, total in enumerate(sums):
      plgpu.store(a_ref.at[token, place, _all(c, rows)], total, mask=own)

  shape = n, k, parts
  grid = n, -(-k // rows)
  args = table_SD, ids_NK, x_ND
  return _call(kernel, 'table_products', grid, shape, args, interpret)


def gradient(total_SD, ids_NK, weights_NKC, dy_ND, *, interpret=False):
  """As the reference: a program for each slot and block of columns.

  It adds up what its slot gets, in the order of the tokens, and writes once.
  Of rows that nobody names nothing is read or written.
  """
  k, d = ids_NK.shape[1], total_SD.shape[1]
  columns = min(COLUMNS, pl.next_power_of_2(d))
  parts = weights_NKC.shape[-1]

  def kernel(given_ref, slot_ref, ends_ref, pair_ref, w_ref, dy_ref, out_ref):
    del given_ref  # it is `out_ref`
    column = numbers(pl.program_id(1) * columns, columns)
    keep = inside(column, d, columns)
    segment = pl.program_id(0)
    first, last = ends_ref[segment, 0], ends_ref[segment, 1]

    def add(i, total):
      place = numbers(first + i * PAIRS, PAIRS)
      own = place < last
      pair = plgpu.load(pair_ref.at[place], mask=own, other=0)
      dy = load(dy_ref, lax.div(pair, k), column, both(own, keep))
      wide = jnp.zeros((PAIRS, columns), jnp.float32)
      part = lax.rem(column, jnp.int32(parts))[None, :]
      for c in range(parts):
        at = w_ref.at[pair, _all(c, PAIRS)]
        weight = plgpu.load(at, mask=own, other=0.0)
        wide = jnp.where(part == c, weight[:, None], wide)
      return total + (wide * dy.astype(jnp.float32)).sum(0)

    @pl.when(first < last)
    def _():
      at = out_ref.at[slot_ref[segment], column]
      zero = None if keep is None else 0.0
      total = plgpu.load(at, mask=keep, other=zero)
      steps = lax.div(last - first + PAIRS - 1, PAIRS)
      plgpu.store(at, lax.fori_loop(0, steps, add, total), mask=keep)

  slot_R, ends_R2, pair_R = _segments(ids_NK)
  args = (
    *(total_SD, slot_R, ends_R2, pair_R),
    *(weights_NKC.reshape(-1, parts), dy_ND),
  )
  grid = slot_R.size, -(-d // columns)
  return _call(
    kernel, 'table_gradient', grid, total_SD.shape, args, interpret, alias=True
  )


def _segments(ids_NK):
  """Slots that are named, and where the pairs of each lie in their order.

  Returns:
    slot_R int32; ends_R2, first and one past the last, equal for none; pair_R.
  """
  ids_R = ids_NK.reshape(-1).astype(jnp.int32)
  place_R = jnp.arange(ids_R.size, dtype=jnp.int32)
  # Stable, so that the order of a sum is that of the tokens.
  ids_R, pair_R = lax.sort((ids_R, place_R), num_keys=1, is_stable=True)
  new_R = jnp.concatenate([jnp.ones(1, bool), ids_R[1:] != ids_R[:-1]])
  first_R = jnp.sort(jnp.where(new_R, place_R, ids_R.size))
  last_R = jnp.append(first_R[1:], jnp.int32(ids_R.size))
  slot_R = ids_R[jnp.minimum(first_R, ids_R.size - 1)]
  return slot_R, jnp.stack([first_R, last_R], 1), pair_R


def _block(k, d):
  """Columns and rows of what a program reads at a time."""
  columns = min(COLUMNS, pl.next_power_of_2(d))
  return columns, min(BLOCK // columns, pl.next_power_of_2(k))


def _line(ref, token, place, keep):
  """[size] of a matrix, 0 where masked."""
  at = ref.at[token, place]
  if keep is None:
    return plgpu.load(at)
  return plgpu.load(at, mask=keep, other=jnp.zeros((), ref.dtype))


def _wide(weights_ref, token, place, own, column):
  """[rows, columns]: the weight of each number of some rows."""
  parts = weights_ref.shape[2]
  part = lax.rem(column, jnp.int32(parts))[None, :]
  wide = jnp.zeros((place.size, column.size), jnp.float32)
  for c in range(parts):
    at = weights_ref.at[token, place, _all(c, place.size)]
    other = None if own is None else 0.0
    weight = plgpu.load(at, mask=own, other=other)
    wide = jnp.where(part == c, weight[:, None], wide)
  return wide


def _all(c, size):
  return jnp.full(size, c, jnp.int32)


def _call(kernel, name, grid, shape, args, interpret, alias=False):
  return pl.pallas_call(
    kernel,
    grid=grid,
    out_shape=shaped(shape, jnp.float32, args),
    compiler_params=plgpu.CompilerParams(num_warps=4),
    input_output_aliases={0: 0} if alias else {},
    interpret=interpret,
    name=name,
  )(*args)
