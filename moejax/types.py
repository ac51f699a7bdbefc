"""What the rooms hand to each other.

Axis letters, used as suffixes at the seams (`x_ND`, `ids_NK`):

  B batch     T time      N tokens (B * T)   D width       F expert hidden
  E experts   K chosen    C capacity         R rows (N * K)
  H heads     V vocabulary                   S cache length

Logical axes of parameters: vocab embed mlp expert heads kv layers slots.
"""

from __future__ import annotations

from typing import Any

import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.rows import Combined, Padded, Ragged, Routed, Rows
from pallas_kernels.route.api import count


@struct.dataclass
class Context:
  """What every layer may read and none may write.

  Attributes:
    tokens_BT: int32 token ids.
    positions_BT: int32, restarting at 0 in each document.
    segments_BT: int32, 1 and up for the documents of a row, 0 for padding.
    train: whether this is a training call (static).
  """

  tokens_BT: jax.Array
  positions_BT: jax.Array
  segments_BT: jax.Array
  train: bool = struct.field(pytree_node=False, default=False)

  @property
  def valid_N(self) -> jax.Array:
    """bool [N]: the tokens that are not padding."""
    return self.segments_BT.reshape(-1) > 0


@struct.dataclass
class Stream:
  """What flows from block to block: the residual stream `x_BTD`."""

  x_BTD: jax.Array


@struct.dataclass
class Outputs:
  """What the model hands to the losses and to the sampler.

  Attributes:
    hidden_BTD: after the last norm.
    head_DV: the output matrix, in the dtype of the activations.
  """

  hidden_BTD: jax.Array
  head_DV: jax.Array

  def logits_BTV(self) -> jax.Array:
    """All logits, f32. Losses work in chunks instead."""
    return jnp.einsum(
      'btd,dv->btv',
      self.hidden_BTD,
      self.head_DV,
      preferred_element_type=jnp.float32,
    )


@struct.dataclass
class Chosen:
  """Tokens pick experts.

  Attributes:
    ids_NK: int32; `num_experts` means "no expert": no work, no output.
    weights_NK: f32 combine weights, 0 where there is no expert.
    logits_NE: f32 router logits, without any selection bias.
  """

  ids_NK: jax.Array
  weights_NK: jax.Array
  logits_NE: jax.Array

  @property
  def num_experts(self) -> int:
    return self.logits_NE.shape[-1]

  def counts_E(self) -> jax.Array:
    """f32 [E]: how many tokens picked each expert."""
    return count(self.ids_NK, self.num_experts).astype(jnp.float32)


@struct.dataclass
class Filled:
  """Experts pick tokens: `tokens_EC` int32 indices and `weights_EC` f32."""

  tokens_EC: jax.Array
  weights_EC: jax.Array


@struct.dataclass
class Soft:
  """Every slot is a mixture of tokens: `dispatch_NEC` and `combine_NEC`."""

  dispatch_NEC: jax.Array
  combine_NEC: jax.Array


Assignment = Chosen | Filled | Soft


State = Any

__all__ = [
  'Assignment',
  'Chosen',
  'Combined',
  'Context',
  'Filled',
  'Outputs',
  'Padded',
  'Ragged',
  'Routed',
  'Rows',
  'Soft',
  'State',
  'Stream',
]
