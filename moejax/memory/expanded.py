"""Memories of more slots than their table has rows."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.memory import tables
from moejax.memory.scored import Scored
from moejax.nn import contract
from moejax.types import Context


class Expanded(Scored, kw_only=True):
  """sum over slots of score * W_p v, where E slots share a value v.

  Slots are permuted and cut into E blocks; slot i of block p has row i of the
  table through the block's own matrix W_p. As W_p is linear it meets the sum
  over the slots of its block: no row of the E-fold table is ever made.

  Source: 2411.12364 (implicit value expansion).
  Differs: as `Scored`; the permutation is affine, not drawn; no convolution
  precedes the query; each rank has a query of its own.

  Attributes:
    values: a `tables.Table` or `tables.Window`, of S^2 / E rows or more.
    blocks: E.

  Raises:
    ValueError: if the blocks do not divide the slots.
  """

  values: nn.Module
  blocks: int = 4

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    width = x_BTD.shape[-1]
    x_ND = x_BTD.reshape(-1, width)
    slots, rows = self.keys**2, self._rows()
    ids_NK, weights_NKC = self.scores(x_ND, ctx.valid_N)
    place_NK = permuted(ids_NK, slots)
    block_NK, row_NK = jnp.divmod(place_NK, rows)
    # A token becomes E tokens, each with the slots of a block. In place of the
    # others it reads its first row again, which is at hand, with weight 0.
    own_NEK = block_NK[:, None] == jnp.arange(self.blocks)[:, None]
    weights = jnp.where(own_NEK[..., None], weights_NKC[:, None], 0)
    row_NEK = jnp.where(own_NEK, row_NK[:, None], row_NK[:, None, :1])

    def flat(a):
      return a.reshape(-1, *a.shape[2:])

    found = tables.rows_of(self.values, width, ctx, flat(row_NEK), rows)
    y = found.sums(flat(weights)).reshape(len(x_ND), -1)
    out = self.matrix('out', y.shape[1], width)
    return contract(y.astype(x_BTD.dtype), out).reshape(x_BTD.shape)

  def _rows(self):
    slots = self.keys**2
    if self.blocks < 1 or slots % self.blocks:
      raise ValueError(
        f'blocks={self.blocks} do not divide the {slots} slots of keys='
        f'{self.keys}; raise keys to {math.ceil(self.keys / 2) * 2} for '
        '4 blocks, or use a divisor.'
      )
    return slots // self.blocks

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    return tables.active_fracs(self.heads * self.k, values=self.values)

  def rows_read(self) -> dict[str, int]:
    """Rows of shared tables that one token reads, by the table's name."""
    return tables.rows_read(self.heads * self.k, self.values)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    dim = self.values.dim or width
    rows = 2 * self.heads * self.k * dim
    return self.scores_flops(width) + rows + 2 * self.blocks * dim * width


def permuted(ids: jax.Array, slots: int) -> jax.Array:
  """Where a fixed permutation of [0, slots) puts each of them."""
  return ids * multiplier(slots) % slots


@functools.cache
def multiplier(slots: int) -> int:
  """The largest that permutes, below the golden section and overflow.

  Neighbours, which score alike, then come to lie far apart.
  """
  most = min(round(0.618 * slots), (2**31 - 1) // slots)
  return next(a for a in range(max(most, 1), 0, -1) if math.gcd(a, slots) == 1)
