"""Key-value memories whose keys are pairs."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.memory import tables
from moejax.memory.halves import Halves, halves_flops
from moejax.memory.retrieval import product_top_k
from moejax.nn import Projection, activations
from moejax.types import Context


class Retrieval(nn.Module):
  """What layers share that softmax the best scores of product keys.

  Attributes:
    keys: S of a side; there are S^2 slots.
    k: slots per head and token.
    heads: H.
    head_dim: numbers of a query of one side.
  """

  keys: int
  k: int
  heads: int
  head_dim: int

  def shares(
    self, x_ND: jax.Array, valid_N: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """int32 ids and f32 weights [N, H * K]; a head's sum to 1, or 0."""
    halves = Halves(
      self.heads,
      self.keys,
      self.head_dim,
      ranks=1,
      gain=self.head_dim**-0.25,
      name='halves',
    )
    left, right = halves(x_ND)
    ids_NHK, scores_NHK = product_top_k(left[..., 0], right[..., 0], self.k)
    weights = jax.nn.softmax(scores_NHK, -1).reshape(len(x_ND), -1)
    weights = jnp.where(valid_N[:, None], weights, 0)
    return ids_NHK.reshape(len(x_ND), -1), weights


class ProductKey(Retrieval):
  """softmax(best scores) times their values, summed over heads.

  Source: 1907.05242 eq. 1 to 4.
  Differs: queries and keys are RMS-normalised in place of a batch norm of the
  queries, whose statistics would reach across tokens; scores start with
  standard deviation 1.

  Attributes:
    values: a `tables.Table` or `tables.Window`, as wide as the model.
  """

  values: nn.Module

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    ids_NK, weights_NK = self.shares(x_ND, ctx.valid_N)
    width, seen = x_ND.shape[1], self.keys**2
    found = tables.rows_of(self.values, width, ctx, ids_NK, seen)
    y = found.sums(weights_NK)
    return y.astype(x_BTD.dtype).reshape(x_BTD.shape)

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    return tables.active_fracs(self.heads * self.k, values=self.values)

  def rows_read(self) -> dict[str, int]:
    """Rows of shared tables that one token reads, by the table's name."""
    return tables.rows_read(self.heads * self.k, self.values)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    halves = halves_flops(width, self.heads, self.keys, self.head_dim)
    return halves + 2 * self.heads * self.k * width


class GatedProductKey(ProductKey):
  """W (memory(x) * silu(G x)): the memory of `ProductKey`, gated by the input.

  Source: 2412.09764 sec. 3.1.
  """

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    width = x_BTD.shape[-1]
    y = super().__call__(x_BTD, ctx)
    gate = Projection((width,), ('embed', 'mlp'), name='gate')(x_BTD)
    gated = y * activations.silu(gate)
    return Projection((width,), ('mlp', 'embed'), name='out')(gated)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    return super().flops(width) + 4 * width**2
