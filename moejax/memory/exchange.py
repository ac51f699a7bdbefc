"""Lookups in a table whose slots are cut over devices: tokens go to rows.

Of each token a device sends each of its P peers what the peer's own rows are
asked for: numbers and weights, in buffers with room for M picks of a token and
peer, and as many rounds as it takes until none is left. A peer sums its part
of a token's rows, and the parts are added up where the token lives. So a device
looks up about what its share of the rows is asked for; not the tokens of all.

Bytes that a device sends for N tokens with K picks each, (P - 1) N times

  lookup            R M (4 + 4 C) + 4 D
  its gradient      R M (4 + 4 C) + 4 D + R M 4 C
  products          R M 4 + b D + R M 4
  their gradient    R M (4 + 4) + b D + 4 D

where R is the number of rounds, C that of weights of a pick and b the bytes of
a number of the vectors that rows are multiplied with. To gather everything in
place of it takes K for R M, sums that all devices get in place of the
reduce-scatter (twice the bytes), and P times the lookups. Sending the rows to
the tokens would take (P - 1) / P N K (4 + 4 D), which is less where K < P.

Tokens take part in steps, so that what a device holds of those of its peers has
one size however many these are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.table_lookup.api import (
  add_gradient,
  part_products,
  table_lookup,
)
from pallas_kernels.table_lookup.xla import in_blocks

# Of vectors of all peers' tokens that a device holds at a time.
STEP_BYTES = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What a call's buffers and bytes depend on.

  Attributes:
    ranks: P, devices that hold a table together.
    tokens: N, of a device.
    k: picks of a token.
    dim: D.
    parts: C, weights of a pick.
    itemsize: b, bytes of a number of what products are taken with.
  """

  ranks: int
  tokens: int
  k: int
  dim: int
  parts: int = 1
  itemsize: int = 4

  @property
  def room(self) -> int:
    """M: half of what the fullest buffer has if picks are spread evenly."""
    share = self.k / self.ranks
    return min(self.k, math.ceil(share / 2 + 2.75 * math.sqrt(share)))

  @property
  def step_tokens(self) -> int:
    """Tokens of a device that take part in a step."""
    held = max(1, STEP_BYTES // (4 * self.dim * self.ranks))
    steps = -(-self.tokens // held)
    return -(-self.tokens // steps)

  def lookup_bytes(self, rounds: int, backward: bool = True) -> dict:
    """Bytes sent by kind of collective, as in `dispatch.traffic`."""
    there = self._picks(rounds, 1 + self.parts)
    sums = self._vectors(4)
    if not backward:
      return {'all-to-all': there, 'reduce-scatter': sums}
    back = self._picks(rounds, self.parts)
    return {
      'all-to-all': 2 * there + back,
      'reduce-scatter': sums,
      'all-gather': sums,
    }

  def products_bytes(self, rounds: int, backward: bool = True) -> dict:
    """Likewise for products with rows."""
    both, vectors = self._picks(rounds, 2), self._vectors(self.itemsize)
    if not backward:
      return {'all-to-all': both, 'all-gather': vectors}
    return {
      'all-to-all': 2 * both,
      'all-gather': 2 * vectors,
      'reduce-scatter': self._vectors(4),
    }

  def _picks(self, rounds, numbers):
    return (self.ranks - 1) * self._sent * rounds * self.room * numbers * 4

  def _vectors(self, itemsize):
    return (self.ranks - 1) * self._sent * self.dim * itemsize

  @property
  def _sent(self):
    """Tokens, with those that make up the last step."""
    return -(-self.tokens // self.step_tokens) * self.step_tokens


def lookup(
  axis: str, table_SD: jax.Array, ids_NK: jax.Array, weights_NK: jax.Array
) -> jax.Array:
  """f32 [N, D]: `table_lookup`, of a device's tokens in the rows of all.

  Args:
    axis: of the mesh, over which the slots are cut; inside `jax.shard_map`.
    table_SD: the rows of this device.
    ids_NK: int32 in [0, P * S), of the device's own tokens.
    weights_NK: [N, K] or [N, K, C].
  """
  weights = weights_NK[..., None] if weights_NK.ndim == 2 else weights_NK
  return _lookup(axis, table_SD, ids_NK, weights.astype(jnp.float32))


def products(
  axis: str, table_SD: jax.Array, ids_NK: jax.Array, x_ND: jax.Array
) -> jax.Array:
  """f32 [N, K]: `table_products`, likewise."""
  return _products(axis, table_SD, ids_NK, x_ND)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(axis, table_SD, ids_NK, weights_NKC):
  return _trip(axis, table_SD, ids_NK, weights_NKC, want=('sums',)).sums_ND


def _lookup_backward(axis, saved, dy_ND):
  want = 'products', 'gradient'
  found = _trip(axis, *saved, dy_ND, want=want)
  return found.gradient_SD, None, found.products_NKC


_lookup.defvjp(
  lambda axis, *args: (_lookup(axis, *args), args), _lookup_backward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _products(axis, table_SD, ids_NK, x_ND):
  found = _trip(axis, table_SD, ids_NK, None, x_ND, want=('products',))
  return found.products_NKC[..., 0]


def _products_backward(axis, saved, da_NK):
  table_SD, ids_NK, x_ND = saved
  weights_NKC, want = da_NK[..., None], ('sums', 'gradient')
  found = _trip(axis, table_SD, ids_NK, weights_NKC, x_ND, want=want)
  return found.gradient_SD, None, found.sums_ND.astype(x_ND.dtype)


_products.defvjp(
  lambda axis, *args: (_products(axis, *args), args), _products_backward
)


class _Found(NamedTuple):
  """What is made of rows, each None where it is not wanted."""

  sums_ND: jax.Array | None
  products_NKC: jax.Array | None
  gradient_SD: jax.Array | None


def _trip(axis, table_SD, ids_NK, weights_NKC=None, x_ND=None, *, want):
  """What is wanted of the rows that a device's tokens name, wherever they are.

  Args:
    axis, table_SD, ids_NK: as of `lookup`.
    weights_NKC: for sums and the gradient.
    x_ND: for products and the gradient.
    want: of 'sums', 'products' and 'gradient'.
  """
  parts = 1 if weights_NKC is None else weights_NKC.shape[-1]
  sizes = Sizes(lax.axis_size(axis), *ids_NK.shape, table_SD.shape[1], parts)
  owner_NK, order_NK = lax.sort_key_val(
    lax.div(ids_NK, jnp.int32(len(table_SD))),
    lax.broadcasted_iota(jnp.int32, ids_NK.shape, 1),
  )
  row_NK = _along(ids_NK, order_NK) - owner_NK * len(table_SD)
  counts_NP = (owner_NK[..., None] == jnp.arange(sizes.ranks)).sum(1)
  if weights_NKC is not None:
    weights_NKC = _along(weights_NKC, order_NK)
  given = (owner_NK, counts_NP, row_NK, weights_NKC, x_ND)
  given = jax.tree.map(lambda a: in_blocks(sizes.step_tokens, a)[0], given)
  rounds = -(-given[1].max((1, 2)) // sizes.room)
  step = functools.partial(_step, axis, sizes, want, table_SD)
  total_SD = jnp.zeros(table_SD.shape, jnp.float32)
  total_SD, (y, a) = lax.scan(
    step,
    total_SD if 'gradient' in want else None,
    (lax.pmax(rounds, axis), *given),
  )

  def whole(found):
    return found.reshape(-1, *found.shape[2:])[: len(ids_NK)]

  y, a = jax.tree.map(whole, (y, a))
  if a is not None:
    place_NK = jnp.argsort(order_NK, 1)
    a = _along(a, place_NK)
  if total_SD is not None:
    total_SD = total_SD.astype(table_SD.dtype)
  return _Found(y, a, total_SD)


def _step(axis, sizes, want, table_SD, total_SD, given):
  """Some tokens of each device, in as many rounds as they take."""
  rounds, owner_NK, counts_NP, row_NK, weights_NKC, x_ND = given
  n, ranks = counts_NP.shape
  starts_NP = jnp.cumsum(counts_NP, 1) - counts_NP
  if x_ND is not None:
    x_ND = lax.all_gather(x_ND, axis, tiled=True)

  def one(i, found):
    y, a, total_SD = found
    first = i * sizes.room
    # 1. To each peer, the picks of this round: those of no pick weigh nothing.
    room_M = first + jnp.arange(sizes.room)
    full_NPM = room_M < counts_NP[..., None]
    pick_NB = (starts_NP[..., None] + room_M).reshape(n, -1)

    def send(picks):
      sent = _along(picks, jnp.minimum(pick_NB, sizes.k - 1))
      sent = sent.reshape(*full_NPM.shape, *picks.shape[2:])
      full = full_NPM.reshape(full_NPM.shape + (1,) * (picks.ndim - 2))
      sent = jnp.where(full, sent, 0).swapaxes(0, 1)
      sent = lax.all_to_all(sent, axis, 0, 0, tiled=True)
      return sent.reshape(-1, *sent.shape[2:])

    ids = send(row_NK)
    weights = None if weights_NKC is None else send(weights_NKC)
    # 2. What the own rows make of them.
    if y is not None:
      y += table_lookup(table_SD, ids, weights)
    if total_SD is not None:
      total_SD = add_gradient(total_SD, ids, weights, x_ND)
    if a is not None:
      # 3. Products go back to their picks.
      got = part_products(table_SD, ids, x_ND, a.shape[2])
      got = got.reshape(ranks, n, sizes.room, -1)
      got = lax.all_to_all(got, axis, 0, 0, tiled=True).swapaxes(0, 1)
      place_NK = jnp.arange(sizes.k) - _along(starts_NP, owner_NK) - first
      here_NK = (place_NK >= 0) & (place_NK < sizes.room)
      place_NK = jnp.where(here_NK, owner_NK * sizes.room + place_NK, 0)
      got = _along(got.reshape(n, ranks * sizes.room, -1), place_NK)
      a = jnp.where(here_NK[..., None], got, a)
    return y, a, total_SD

  y = a = None
  if 'sums' in want:
    y = jnp.zeros((ranks * n, sizes.dim), jnp.float32)
  if 'products' in want:
    a = jnp.zeros((n, sizes.k, sizes.parts), jnp.float32)
  y, a, total_SD = lax.fori_loop(0, rounds, one, (y, a, total_SD))
  if y is not None:
    y = lax.psum_scatter(y, axis, tiled=True)
  return total_SD, (y, a)


def _along(a, place_NK):
  """[N, K, ...]: of each token, what is at its places of axis 1."""
  place = place_NK.reshape(place_NK.shape + (1,) * (a.ndim - 2))
  return jnp.take_along_axis(a, place, 1, mode='promise_in_bounds')
