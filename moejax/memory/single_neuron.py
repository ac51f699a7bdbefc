"""Experts of a single neuron, retrieved by product keys."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from moejax.memory import tables
from moejax.memory.halves import halves_flops
from moejax.memory.product_key import Retrieval
from moejax.nn import activations
from moejax.types import Context


class SingleNeuron(Retrieval):
  """sum over heads and slots of softmax(score) * act(x . u) * v.

  Source: 2407.04153 algorithm 1; every head keeps k experts, whatever weighs
  their scores.
  Differs: queries and keys are RMS-normalised, as in `ProductKey`.

  Attributes:
    values: the table of v, as wide as the model.
    pre_values: likewise that of u.
    activation: of x . u.
  """

  values: nn.Module
  pre_values: nn.Module
  activation: Callable = activations.gelu

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    width = x_BTD.shape[-1]
    x_ND = x_BTD.reshape(-1, width)
    ids_NK, share_NK = self.shares(x_ND, ctx.valid_N)

    def read(table):
      return tables.rows_of(table, width, ctx, ids_NK, self.keys**2)

    hidden_NK = self.activation(read(self.pre_values).products(x_ND))
    y = read(self.values).sums(share_NK * hidden_NK)
    return y.astype(x_BTD.dtype).reshape(x_BTD.shape)

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    both = dict(values=self.values, pre_values=self.pre_values)
    return tables.active_fracs(self.heads * self.k, **both)

  def rows_read(self) -> dict[str, int]:
    """Rows of shared tables that one token reads, by the table's name."""
    return tables.rows_read(self.heads * self.k, self.values, self.pre_values)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    halves = halves_flops(width, self.heads, self.keys, self.head_dim)
    return halves + 4 * self.heads * self.k * width
