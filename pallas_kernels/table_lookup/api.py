"""Rows of a table by number: checks, gradients, choice of implementation.

Weighted sums of rows and products with rows are each other's gradients, and
share the table's. Nothing of all tokens' rows is ever made.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.choose import Entry, choose
from pallas_kernels.table_lookup import (
  cpu,
  pallas_gpu,
  pallas_tpu,
  reference,
  xla,
)


def table_lookup(
  table_SD: jax.Array,
  ids_NK: jax.Array,
  weights_NK: jax.Array,
  *,
  implementation: str | None = None,
) -> jax.Array:
  """f32 [N, D]: sum over k of weights_NK * table_SD[ids_NK].

  Source: 2508.18756 eq. 15 (the sum over values, for each core its own part).
  Differs: parts are interleaved, not one behind the other, which is the same up
  to the order of the table's columns.

  Args:
    table_SD: [S, D], f32 or bf16.
    ids_NK: int32 in [0, S); others give anything.
    weights_NK: [N, K], or [N, K, C]: then number d of a row has weight d % C.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'columns' (CPU), 'mosaic' (TPU), 'triton' (CUDA), 'blocks' or
      'reference'.

  Raises:
    ValueError: shapes or dtypes that do not fit, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  weights = weights_NK[..., None] if weights_NK.ndim == 2 else weights_NK
  _check('table_lookup', table_SD, ids_NK, weights.shape[-1])
  if weights.shape[:2] != ids_NK.shape:
    raise ValueError(
      f'table_lookup: weights {weights_NK.shape} do not go with ids '
      f'{ids_NK.shape}; give [N, K] or [N, K, C] of the same N and K.'
    )
  if ids_NK.size == 0:
    return jnp.zeros((len(ids_NK), table_SD.shape[1]), jnp.float32)
  return _lookup(implementation, table_SD, ids_NK, weights.astype(jnp.float32))


def table_products(
  table_SD: jax.Array,
  ids_NK: jax.Array,
  x_ND: jax.Array,
  *,
  implementation: str | None = None,
) -> jax.Array:
  """f32 [N, K]: x_ND . table_SD[ids_NK].

  Source: 2407.04153 sec. 2 (the hidden units of single-neuron experts).

  Args:
    table_SD: [S, D], f32 or bf16.
    ids_NK: int32 in [0, S); others give anything.
    x_ND: [N, D].
    implementation: as of `table_lookup`, without 'columns'.

  Raises:
    ValueError, NotImplementedError: as `table_lookup`.
  """
  _check_products(table_SD, ids_NK, x_ND, 1)
  if ids_NK.size == 0:
    return jnp.zeros(ids_NK.shape, jnp.float32)
  return _products(implementation, 1, table_SD, ids_NK, x_ND)[..., 0]


def part_products(
  table_SD: jax.Array, ids_NK: jax.Array, x_ND: jax.Array, parts: int
) -> jax.Array:
  """f32 [N, K, C]: as `table_products`, for each part of a row by itself.

  It is the gradient of the weights of `table_lookup`, of which x_ND is the
  gradient of the result.
  """
  _check_products(table_SD, ids_NK, x_ND, parts)
  if ids_NK.size == 0:
    return jnp.zeros((*ids_NK.shape, parts), jnp.float32)
  return _products(None, parts, table_SD, ids_NK, x_ND)


def add_gradient(
  total_SD: jax.Array,
  ids_NK: jax.Array,
  weights_NK: jax.Array,
  dy_ND: jax.Array,
) -> jax.Array:
  """f32 [S, D]: total_SD and the gradient of a table, of which it has the size.

  In a loop whose carry it is, rows that are not named are not touched.

  Args:
    total_SD: f32.
    ids_NK: int32 in [0, S).
    weights_NK: [N, K] or [N, K, C].
    dy_ND: as of `touched_rows`.
  """
  weights = weights_NK[..., None] if weights_NK.ndim == 2 else weights_NK
  if ids_NK.size == 0:
    return total_SD
  weights = weights.astype(jnp.float32)
  return _sums_by_slot(None, None, total_SD, ids_NK, weights, dy_ND)


def touched_rows(
  ids_NK: jax.Array,
  weights_NK: jax.Array,
  dy_ND: jax.Array,
  slots: int,
  *,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The table's gradient as its rows that are touched: (slots_R, rows_RD).

  Its memory grows with the rows that are read, not with the table.

  Args:
    ids_NK: int32 in [0, slots).
    weights_NK: [N, K] or [N, K, C].
    dy_ND: the gradient of `table_lookup`, or the x of `table_products` beside
      the gradient of its result as weights.
    slots: S.
    implementation: 'places' (CPU), 'blocks', or `None` to choose.

  Returns:
    slots_R int32, each slot at most once and in order; `slots` means "none".
    rows_RD f32, whose rows of none hold anything.
  """
  weights = weights_NK[..., None] if weights_NK.ndim == 2 else weights_NK
  static = functools.partial
  table = {
    'places': Entry(static(cpu.touched, slots=slots), platforms=('cpu',)),
    'blocks': Entry(static(_whole_blocks, slots=slots)),
  }
  return choose(
    'touched_rows',
    table,
    ids_NK,
    weights.astype(jnp.float32),
    dy_ND,
    implementation=implementation,
  )


def _whole_blocks(ids_NK, weights_NKC, dy_ND, *, slots):
  """`xla.touched`, cut to as many rows as there are pairs."""
  found = xla.touched(ids_NK, weights_NKC, dy_ND, slots=slots)
  return jax.tree.map(lambda a: a[: ids_NK.size], found)


def _check(op, table_SD, ids_NK, parts):
  if ids_NK.ndim != 2 or not jnp.issubdtype(ids_NK.dtype, jnp.integer):
    raise ValueError(
      f'{op} takes integer ids [N, K], not {ids_NK.dtype} {ids_NK.shape}.'
    )
  if table_SD.ndim != 2 or table_SD.shape[1] % parts:
    raise ValueError(
      f'{op}: a table {table_SD.shape} has no rows of {parts} equal parts; '
      'give [S, D] with D a multiple of the parts.'
    )


def _check_products(table_SD, ids_NK, x_ND, parts):
  _check('table_products', table_SD, ids_NK, parts)
  if x_ND.shape != (len(ids_NK), table_SD.shape[1]):
    raise ValueError(
      f'table_products: x {x_ND.shape} does not go with ids {ids_NK.shape} and '
      f'a table {table_SD.shape}; give [N, D] of their N and D.'
    )


def _on_gpu(call):
  return Entry(
    call, platforms=('cuda',), refuses=pallas_gpu.refuses, partitions=False
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(implementation, table_SD, ids_NK, weights_NKC):
  table = {
    'columns': Entry(cpu.lookup, platforms=('cpu',)),
    'mosaic': Entry(
      pallas_tpu.lookup,
      platforms=('tpu',),
      refuses=pallas_tpu.refuses,
      partitions=False,
    ),
    'triton': _on_gpu(pallas_gpu.lookup),
    'blocks': Entry(xla.lookup),
    'reference': Entry(reference.lookup),
  }
  return choose(
    'table_lookup',
    table,
    table_SD,
    ids_NK,
    weights_NKC,
    implementation=implementation,
  )


def _lookup_backward(implementation, saved, dy_ND):
  table_SD, ids_NK, weights_NKC = saved
  parts = weights_NKC.shape[-1]
  dweights = _products(_plain(implementation), parts, table_SD, ids_NK, dy_ND)
  dtable_SD = _gradient(implementation, table_SD, ids_NK, weights_NKC, dy_ND)
  return dtable_SD, None, dweights


_lookup.defvjp(
  lambda implementation, *args: (_lookup(implementation, *args), args),
  _lookup_backward,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _products(implementation, parts, table_SD, ids_NK, x_ND):
  static = functools.partial
  table = {
    'mosaic': Entry(
      static(pallas_tpu.products, parts=parts),
      platforms=('tpu',),
      refuses=pallas_tpu.refuses,
      partitions=False,
    ),
    'triton': _on_gpu(static(pallas_gpu.products, parts=parts)),
    'blocks': Entry(static(xla.products, parts=parts)),
    'reference': Entry(static(reference.products, parts=parts)),
  }
  return choose(
    'table_products',
    table,
    table_SD,
    ids_NK,
    x_ND,
    implementation=implementation,
  )


def _products_backward(implementation, _parts, saved, da_NKC):
  table_SD, ids_NK, x_ND = saved
  dx_ND = _lookup(implementation, table_SD, ids_NK, da_NKC)
  dtable_SD = _gradient(implementation, table_SD, ids_NK, da_NKC, x_ND)
  return dtable_SD, None, dx_ND.astype(x_ND.dtype)


_products.defvjp(
  lambda implementation, parts, *args: (
    _products(implementation, parts, *args),
    args,
  ),
  _products_backward,
)


def _plain(implementation):
  """A name of `table_lookup` as one of `table_products`."""
  return None if implementation == 'columns' else implementation


def _gradient(implementation, table_SD, ids_NK, weights_NKC, dy_ND):
  args = ids_NK, weights_NKC, dy_ND
  dtable_SD = _sums_by_slot(implementation, len(table_SD), *args)
  return dtable_SD.astype(table_SD.dtype)


def _sums_by_slot(implementation, fresh, *args):
  """The gradient of a table, added to the first argument or of `fresh` rows."""

  def of(gradient):
    if fresh is None:
      return gradient
    return functools.partial(_from_zeros, gradient, fresh)

  blocks = functools.partial(xla.gradient, fresh=fresh is not None)
  table = {
    'scatter': Entry(of(cpu.gradient), platforms=('cpu',)),
    'triton': _on_gpu(of(pallas_gpu.gradient)),
    'blocks': Entry(of(blocks)),
    'reference': Entry(of(reference.gradient)),
  }
  if implementation not in table:
    implementation = None
  return choose(
    'table_lookup (backward)', table, *args, implementation=implementation
  )


def _from_zeros(gradient, slots, ids_NK, weights_NKC, dy_ND):
  """Made within the choice, or the zeros would be copied into it."""
  # Of the ids, so that they vary over the same devices in `shard_map`.
  zeros_SD = jnp.zeros((slots, dy_ND.shape[1]), jnp.float32) + 0 * ids_NK[0, 0]
  return gradient(zeros_SD, ids_NK, weights_NKC, dy_ND)
