"""Rows of a list of pairs of token and expert: what experts see of `Pairs`."""

from __future__ import annotations

import functools

import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.rows import Combined, Ragged
from pallas_kernels.expert_ffn.api import PRE_ACTIVATIONS, expert_ffn

# What the backward pass keeps: a row of width D for every pair is gathered
# again instead.
_KEEP = jax.checkpoint_policies.save_only_these_names(PRE_ACTIVATIONS)


@struct.dataclass
class Paired:
  """Tokens with a list of pairs.

  An expert that asks for `feed_forward` gets `Combined`; any other gets
  `Ragged` rows from its first `dot`.

  Attributes:
    x_ND: the tokens.
    tokens_R: int32, the token of each pair.
    ids_R: int32, its expert, ascending; "no expert" comes last.
    weights_R: f32.
    sizes_E: int32, pairs of each expert.
  """

  x_ND: jax.Array
  tokens_R: jax.Array
  ids_R: jax.Array
  weights_R: jax.Array
  sizes_E: jax.Array

  @property
  def width(self) -> int:
    return self.x_ND.shape[-1]

  def dot(self, w_EDF: jax.Array) -> Ragged:
    return Ragged(self.x_ND[self.tokens_R], self.sizes_E).dot(w_EDF)

  def feed_forward(self, gate_EDF, up_EDF, down_EFD, activation) -> Combined:
    matrices = gate_EDF, up_EDF, down_EFD

    # Each pair is a token of its own with one expert.
    @functools.partial(jax.checkpoint, policy=_KEEP)
    def run(x_ND, matrices, weights_R):
      y_RD = expert_ffn(
        x_ND[self.tokens_R],
        *matrices,
        self.ids_R[:, None],
        weights_R[:, None],
        activation=activation,
      )
      return self._sum(y_RD)

    return Combined(run(self.x_ND, matrices, self.weights_R))

  def combine(self, done: Ragged | Combined) -> jax.Array:
    """[N, D]: each token's weighted sum of what its experts made of it."""
    if isinstance(done, Combined):
      return done.y_ND
    weights_R1 = self.weights_R[:, None]
    return self._sum(done.rows_RD * weights_R1.astype(done.rows_RD.dtype))

  def _sum(self, y_RD):
    wide = jnp.promote_types(y_RD.dtype, jnp.float32)
    y_ND = jnp.zeros((self.x_ND.shape[0], y_RD.shape[1]), wide)
    y_ND = y_ND.at[self.tokens_R].add(y_RD.astype(wide))
    return y_ND.astype(y_RD.dtype)
