"""Rows: what experts see. An expert is written once, for all of them.

`rows.dot(w_EDF)` multiplies each row by the matrix of its expert, `rows.map(f)`
is element-wise, and `rows.feed_forward` is the usual two layers, which a kernel
may do at once. Letters: see `types`.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct as struct
import jax
import jax.numpy as jnp

from pallas_kernels.expert_ffn.api import expert_ffn
from pallas_kernels.grouped_matmul.api import grouped_matmul
from pallas_kernels.route.api import permutation
from pallas_kernels.route.rows import combine, gather_rows


class Layers:
  """The usual feed-forward out of `dot` and `map`."""

  def feed_forward(self, gate_EDF, up_EDF, down_EFD, activation: Callable):
    """down(activation(gate x) * up x); without `up`, down(activation(gate x)).

    Args:
      gate_EDF: [E, D, F].
      up_EDF: [E, D, F] or None.
      down_EFD: [E, F, D].
      activation: element-wise.
    """
    gate = self.dot(gate_EDF)
    if up_EDF is None:
      return gate.map(activation).dot(down_EFD)
    hidden = gate.map(lambda g, u: activation(g) * u, self.dot(up_EDF))
    return hidden.dot(down_EFD)


@struct.dataclass
class Ragged(Layers):
  """Rows sorted by expert, `sizes_E` of them each; later rows are dead."""

  rows_RD: jax.Array
  sizes_E: jax.Array

  @property
  def width(self) -> int:
    return self.rows_RD.shape[-1]

  def dot(self, w_EDF: jax.Array) -> Ragged:
    w_EDF = w_EDF.astype(self.rows_RD.dtype)
    return self.replace(
      rows_RD=grouped_matmul(self.rows_RD, w_EDF, self.sizes_E)
    )

  def map(self, f: Callable, *others: Ragged) -> Ragged:
    return self.replace(rows_RD=f(self.rows_RD, *(o.rows_RD for o in others)))


@struct.dataclass
class Padded(Layers):
  """The same number of rows for every expert, on one axis or more."""

  rows_ECD: jax.Array

  @property
  def width(self) -> int:
    return self.rows_ECD.shape[-1]

  def dot(self, w_EDF: jax.Array) -> Padded:
    w_EDF = w_EDF.astype(self.rows_ECD.dtype)
    return self.replace(
      rows_ECD=jnp.einsum('e...d,edf->e...f', self.rows_ECD, w_EDF)
    )

  def map(self, f: Callable, *others: Padded) -> Padded:
    return self.replace(
      rows_ECD=f(self.rows_ECD, *(o.rows_ECD for o in others))
    )


@struct.dataclass
class Routed:
  """Tokens with their experts, not yet in any order.

  An expert that asks for `feed_forward` leaves order, products and sum to one
  kernel and gets `Combined`; any other gets `Ragged` rows from its first `dot`.

  Attributes:
    x_ND: the tokens.
    ids_NK: int32; `num_experts` is "no expert".
    weights_NK: f32.
    num_experts: E (static).
  """

  x_ND: jax.Array
  ids_NK: jax.Array
  weights_NK: jax.Array
  num_experts: int = struct.field(pytree_node=False)

  @property
  def width(self) -> int:
    return self.x_ND.shape[-1]

  def dot(self, w_EDF: jax.Array) -> Ragged:
    return self.sorted().dot(w_EDF)

  def feed_forward(self, gate_EDF, up_EDF, down_EFD, activation) -> Combined:
    # Parameters go in as they are: a copy in the dtype of the tokens, made
    # here, would be kept for the backward pass.
    y_ND = expert_ffn(
      self.x_ND,
      gate_EDF,
      up_EDF,
      down_EFD,
      self.ids_NK,
      self.weights_NK,
      activation=activation,
    )
    return Combined(y_ND)

  def sorted(self) -> Ragged:
    """The rows in expert order; "no expert" comes last, past every group."""
    plan = self._plan()
    return Ragged(gather_rows(self.x_ND, plan), plan.sizes_E)

  def combine(self, done: Ragged | Combined) -> jax.Array:
    """[N, D]: each token's weighted sum of what its experts made of it."""
    if isinstance(done, Combined):
      return done.y_ND
    return combine(done.rows_RD, self.weights_NK, self._plan())

  def spread(self, done: Ragged) -> jax.Array:
    """[N, K, D]: what each of a token's experts made of it; 0 of no expert."""
    pairs = self._pairs(None)
    return pairs.combine(done).reshape(*self.ids_NK.shape, done.width)

  def gathered(self, y_NKD: jax.Array) -> Ragged:
    """Rows in expert order, where a token has one for each of its experts."""
    return self._pairs(y_NKD.reshape(-1, y_NKD.shape[-1])).sorted()

  def _pairs(self, y_RD):
    """Each pair as a token with one expert; the order of rows is the same."""
    ids_R1 = self.ids_NK.reshape(-1, 1)
    ones_R1 = jnp.ones(ids_R1.shape, jnp.float32)
    return Routed(y_RD, ids_R1, ones_R1, self.num_experts)

  def _plan(self):
    return permutation(self.ids_NK, self.num_experts)


@struct.dataclass
class Combined:
  """The weighted sum over each token's experts, [N, D]."""

  y_ND: jax.Array
