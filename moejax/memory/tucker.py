"""Memories of pairs of a pre-value and a value."""

from __future__ import annotations

import flax.linen as nn
import jax

from moejax.memory import tables
from moejax.memory.scored import Scored
from moejax.nn import contract
from moejax.types import Context


class Tucker(Scored, kw_only=True):
  """W_v (sum over slots of (W_p x . p) * score * v); scores are not normalised.

  Source: 2508.18756 eq. 15 and sec. 2.
  Differs: as `Scored`; parts are interleaved (see `table_lookup`); slots are
  not permuted, which only a table used twice by a layer needs.

  Attributes:
    values: a `tables.Table` or `tables.Window`.
    pre_values: likewise, of the vectors that the projected input meets.
  """

  values: nn.Module
  pre_values: nn.Module

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    width = x_BTD.shape[-1]
    x_ND = x_BTD.reshape(-1, width)
    ids_NK, weights = self.scores(x_ND, ctx.valid_N)

    def read(table):
      return tables.rows_of(table, width, ctx, ids_NK, self.keys**2)

    pre = read(self.pre_values)
    x = contract(x_ND, self.matrix('pre', width, pre.table_SD.shape[1]))
    hidden_NK = pre.products(x)
    y = read(self.values).sums(weights * hidden_NK[..., None])
    out = self.matrix('out', y.shape[1], width)
    return contract(y.astype(x_BTD.dtype), out).reshape(x_BTD.shape)

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    both = dict(values=self.values, pre_values=self.pre_values)
    return tables.active_fracs(self.heads * self.k, **both)

  def rows_read(self) -> dict[str, int]:
    """Rows of shared tables that one token reads, by the table's name."""
    return tables.rows_read(self.heads * self.k, self.values, self.pre_values)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    pre, out = (t.dim or width for t in (self.pre_values, self.values))
    rows = 2 * self.heads * self.k * (pre + out)
    return self.scores_flops(width) + rows + 2 * width * (pre + out)
