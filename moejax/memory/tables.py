"""Tables of rows: a layer's own, or a window of one that layers share."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from moejax import sharding
from moejax.memory import exchange, taps
from moejax.types import Context
from pallas_kernels.table_lookup.api import table_lookup, table_products


class Table(nn.Module):
  """S rows of numbers: those of one layer, or, under `shared`, of several.

  Attributes:
    slots: S.
    dim: numbers of a row; None is the width of the model.
    std: standard deviation of the initial numbers; None is dim^-1/2.
  """

  slots: int
  dim: int | None = None
  std: float | None = None

  @nn.compact
  def __call__(self, width: int) -> jax.Array:
    """f32 [S, D]."""
    dim = self.dim or width
    std = dim**-0.5 if self.std is None else self.std
    init = nn.with_logical_partitioning(
      nn.initializers.normal(std), ('slots', 'value')
    )
    return self.param('rows', init, (self.slots, dim), jnp.float32)

  @property
  def tap(self) -> str:
    """Name of what a tap on it is called; see `taps`."""
    return taps.OWN

  def example(self, width: int) -> tuple[int]:
    """What to initialise it with where layers share it."""
    return (width,)

  def read(self, width: int, ctx: Context) -> tuple[jax.Array, int]:
    """The table, and the row that slot 0 is."""
    del ctx
    return self(width), 0


class Window(nn.Module):
  """The rows of a shared table that a layer sees: a window on a ring.

  Source: 2508.18756 sec. 3 (ring sharing); with `stride` 0 every layer sees the
  same rows, as in 2412.09764.

  Attributes:
    of: the name of the table under the model's `shared`.
    dim: as of that table.
    stride: rows by which the window of each layer begins after that of the one
      before it.
  """

  of: str
  dim: int | None = None
  stride: int = 0

  @property
  def tap(self) -> str:
    """Name of what a tap on it is called; see `taps`."""
    return f'{taps.SHARED}{self.of}'

  def read(self, width: int, ctx: Context) -> tuple[jax.Array, jax.Array | int]:
    """The whole table, and the row that slot 0 of this layer is.

    Raises:
      ValueError: if there is no such table, or its rows have another width.
    """
    if self.of not in ctx.shared:
      raise ValueError(
        f'of={self.of!r} is no shared module; known: '
        f'{", ".join(sorted(ctx.shared)) or "none"}. Add it to model.shared.'
      )
    table_SD = ctx.shared[self.of](width)
    if table_SD.shape[1] != (self.dim or width):
      raise ValueError(
        f'the window of {self.of!r} has dim={self.dim or width}, but rows of '
        f'the table have {table_SD.shape[1]}; make them equal.'
      )
    return table_SD, self.stride * ctx.layer


class Found(NamedTuple):
  """A whole table, and the rows of it that tokens read.

  Attributes:
    reader: the `Table` or `Window` that it was found through.
    table_SD: the table.
    ids_NK: int32, of its rows.
  """

  reader: nn.Module
  table_SD: jax.Array
  ids_NK: jax.Array

  def sums(self, weights_NKC: jax.Array) -> jax.Array:
    """f32 [N, D]: the rows of each token, weighted as by `table_lookup`."""
    y_ND = lookup(self.table_SD, self.ids_NK, weights_NKC)
    return self._tapped(y_ND, weights=weights_NKC)

  def products(self, x_ND: jax.Array) -> jax.Array:
    """f32 [N, K]: the rows of each token times its own vector."""
    a_NK = products(self.table_SD, self.ids_NK, x_ND)
    return self._tapped(a_NK, vectors=x_ND)

  def _tapped(self, y, **factor):
    return taps.tapped(self.reader, y, ids=self.ids_NK, **factor)


def rows_of(
  table: Table | Window, width: int, ctx: Context, ids_NK: jax.Array, seen: int
) -> Found:
  """A whole table, and the rows of it that ids in [0, seen) are.

  Raises:
    ValueError: if the table has fewer rows.
  """
  table_SD, start = table.read(width, ctx)
  slots = table_SD.shape[0]
  if seen > slots:
    raise ValueError(
      f'keys make {seen} slots, but the table has {slots}; raise its slots to '
      f'{seen} or lower keys to {int(slots**0.5)}.'
    )
  if not isinstance(start, int):
    ids_NK = (ids_NK + start) % slots
  return Found(table, table_SD, ids_NK)


def active_fracs(rows: int, **tables: nn.Module) -> dict[str, float]:
  """Of a layer's own tables, the share of each that `rows` rows are."""
  return {
    f'{name}/rows': min(1.0, rows / table.slots)
    for name, table in tables.items()
    if isinstance(table, Table)
  }


def rows_read(rows: int, *tables: nn.Module) -> dict[str, int]:
  """Of shared tables, the rows that a token reads."""
  return {t.of: rows for t in tables if isinstance(t, Window)}


def lookup(
  table_SD: jax.Array, ids_NK: jax.Array, weights_NKC: jax.Array
) -> jax.Array:
  """f32 [N, D]: `table_lookup`, with the table cut over the mesh in force.

  Cut by 'value', a device sums its part of every row that a token of its group
  names; cut by 'slots', devices exchange (see `exchange`).
  """
  cut = _cut(table_SD)
  if cut is None:
    return table_lookup(table_SD, ids_NK, weights_NKC)
  axis, by_value = cut
  if not by_value:
    return _exchanged(exchange.lookup, axis, table_SD, ids_NK, weights_NKC)
  tokens = _tokens(axis, ids_NK)
  return _spread(
    table_lookup,
    (PartitionSpec(None, axis), tokens, tokens),
    PartitionSpec(*tokens, axis),
  )(table_SD, ids_NK, weights_NKC)


def products(
  table_SD: jax.Array, ids_NK: jax.Array, x_ND: jax.Array
) -> jax.Array:
  """f32 [N, K]: `table_products`, with the table cut likewise."""
  cut = _cut(table_SD)
  if cut is None:
    return table_products(table_SD, ids_NK, x_ND)
  axis, by_value = cut
  if not by_value:
    return _exchanged(exchange.products, axis, table_SD, ids_NK, x_ND)
  tokens = _tokens(axis, ids_NK)

  def local(table_SD, ids, x):
    return jax.lax.psum(table_products(table_SD, ids, x), axis)

  specs = PartitionSpec(None, axis), tokens, PartitionSpec(*tokens, axis)
  return _spread(local, specs, tokens)(table_SD, ids_NK, x_ND)


def _cut(table_SD):
  """The mesh axis that cuts a table, and whether it cuts rows; or None."""
  slots, dim = table_SD.shape
  for name, size in (('value', dim), ('slots', slots)):
    axes = sharding.axes_of(name)
    if axes:
      sharding.check_divides(name, size, axes)
      return axes[0], name == 'value'
  return None


def _tokens(axis, ids_NK):
  """Tokens cut over all of a batch's axes but one, if they can be."""
  batch = tuple(a for a in sharding.axes_of('batch') if a != axis)
  fits = len(ids_NK) % sharding.size_of(batch) == 0
  return PartitionSpec(batch if batch and fits else None)


def _exchanged(op, axis, table_SD, ids_NK, factor):
  """An exchange, of tokens that are cut over its axis as well."""
  axes = tuple(dict.fromkeys((*sharding.axes_of('batch'), axis)))
  after = -len(ids_NK) % sharding.size_of(axes)
  tokens = PartitionSpec(axes)
  y = _spread(
    functools.partial(op, axis), (PartitionSpec(axis), tokens, tokens), tokens
  )(
    table_SD,
    *(
      jnp.pad(a, ((0, after), *((0, 0),) * (a.ndim - 1)))
      for a in (ids_NK, factor)
    ),
  )
  return y[: len(ids_NK)]


def _spread(local, in_specs, out_specs):
  return jax.shard_map(
    local,
    in_specs=in_specs,
    out_specs=out_specs,
    axis_names=sharding.auto_axes(),
    check_vma=False,
  )
