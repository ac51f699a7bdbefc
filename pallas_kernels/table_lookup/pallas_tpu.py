"""Rows of a table on TPU: copies of single rows, double-buffered.

The table stays in HBM. While the rows of one token are summed, those of the
next are on their way; their numbers come ahead, in scalar memory.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.route.parts import refuses_shards, shaped

LANES = 128
TOKENS = 64  # of a grid step, at most
BLOCK_BYTES = 2 * 2**20  # of what each has beside its rows
MOST_BYTES = 4 * 2**20  # of both buffers


def lookup(table_SD, ids_NK, weights_NKC, *, interpret=False):
  """As the reference."""
  kernel = functools.partial(_lookup, parts=weights_NKC.shape[-1])
  args = table_SD, ids_NK, weights_NKC.astype(jnp.float32)
  return _call(kernel, *args, (table_SD.shape[1],), interpret)


def products(table_SD, ids_NK, x_ND, *, parts, interpret=False):
  """As the reference."""
  kernel = functools.partial(_products, parts=parts)
  args = table_SD, ids_NK, x_ND.astype(jnp.float32)
  return _call(kernel, *args, (ids_NK.shape[1], parts), interpret)


def refuses(table_SD, ids_NK, *_) -> str | None:
  """Why the kernels do not take these arguments, if so."""
  if table_SD.dtype != jnp.float32:
    return f'single rows can be copied of f32 tables only, not {table_SD.dtype}'
  size = 2 * ids_NK.shape[1] * table_SD.shape[1] * 4
  if size > MOST_BYTES:
    return (
      f'two times {ids_NK.shape[1]} rows of {table_SD.shape[1]} are {size} '
      f'bytes, more than {MOST_BYTES}'
    )
  return refuses_shards()


def tokens_of_step(*shapes: tuple[int, ...]) -> int:
  """As many as arrays of these shapes a token, padded to lanes, have room."""
  size = sum(
    4 * math.prod(shape[:-1]) * (shape[-1] + -shape[-1] % LANES)
    for shape in shapes
  )
  return max(8, min(TOKENS, BLOCK_BYTES // size // 8 * 8))


def _whole_blocks(tokens, *arrays):
  after = -len(arrays[0]) % tokens
  return [jnp.pad(a, ((0, after), *((0, 0),) * (a.ndim - 1))) for a in arrays]


def _call(kernel, table_SD, ids_NK, own, out, interpret):
  """`own` is what each token has beside its rows; `out` a token's result."""
  given, tokens = len(ids_NK), tokens_of_step(own.shape[1:], out)
  ids_NK, own = _whole_blocks(tokens, ids_NK, own)
  (n, k), d = ids_NK.shape, table_SD.shape[1]

  def block(shape, space=pltpu.VMEM):
    rest = (0,) * len(shape)
    return pl.BlockSpec(
      (tokens, *shape), lambda i: (i, *rest), memory_space=space
    )

  return pl.pallas_call(
    kernel,
    grid=(n // tokens,),
    in_specs=[
      block((k,), pltpu.SMEM),
      pl.BlockSpec(memory_space=pl.ANY),
      block(own.shape[1:]),
    ],
    out_specs=block(out),
    out_shape=shaped((n, *out), jnp.float32, table_SD, ids_NK, own),
    scratch_shapes=[
      pltpu.VMEM((2, k, d), jnp.float32),
      pltpu.SemaphoreType.DMA((2,)),
    ],
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',)),
    interpret=interpret,
  )(ids_NK, table_SD, own)[:given]


def _lookup(ids, table, weights, y, rows, arrived, *, parts):
  def one(t, rows_KD):
    part = _part(rows_KD.shape, parts)
    weights_KC = weights[t]
    wide = sum(
      jnp.where(part == c, weights_KC[:, c : c + 1], 0) for c in range(parts)
    )
    y[pl.ds(t, 1), :] = (wide * rows_KD).sum(0, keepdims=True)

  _each_token(one, ids, table, rows, arrived)


def _products(ids, table, x, a, rows, arrived, *, parts):
  def one(t, rows_KD):
    part = _part(rows_KD.shape, parts)
    product = rows_KD * x[pl.ds(t, 1), :]
    sums = [
      jnp.where(part == c, product, 0).sum(1, keepdims=True)
      for c in range(parts)
    ]
    column = jax.lax.broadcasted_iota(jnp.int32, a.shape[1:], 1)
    a[t] = sum(jnp.where(column == c, s, 0) for c, s in enumerate(sums))

  _each_token(one, ids, table, rows, arrived)


def _part(shape, parts):
  """The part of a row that each of its numbers belongs to."""
  lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  return jax.lax.rem(lane, jnp.int32(parts))


def _each_token(one, ids, table, rows, arrived):
  tokens, k = ids.shape

  def copy(t, j):
    buffer = jax.lax.rem(t, 2)
    return pltpu.make_async_copy(
      table.at[pl.ds(ids[t, j], 1)],
      rows.at[buffer, pl.ds(j, 1)],
      arrived.at[buffer],
    )

  def for_all(t, do):
    jax.lax.fori_loop(0, k, lambda j, _: do(copy(t, j)), None)

  # 1. The rows of the first token set out.
  for_all(jnp.int32(0), lambda c: c.start())

  def step(t, _):
    # 2. Those of the next one do, into the other buffer.
    @pl.when(t + 1 < tokens)
    def _():
      for_all(t + 1, lambda c: c.start())

    # 3. All of this one are there: the waits are as many as the copies.
    for_all(t, lambda c: c.wait())
    one(t, rows[jax.lax.rem(t, 2)])

  jax.lax.fori_loop(0, tokens, step, None)
