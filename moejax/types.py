"""What the rooms hand to each other.

Axis letters, used as suffixes at the seams (`x_ND`, `ids_NK`):

  B batch     T time      N tokens (B * T)   D width       F expert hidden
  E experts   K chosen    C capacity         R rows (N * K)
  H heads     V vocabulary                   S cache length

Logical axes of parameters: vocab embed mlp expert heads kv layers slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.paired import Paired
from moejax.rows import Combined, Padded, Ragged, Routed
from pallas_kernels.route.api import count


@struct.dataclass
class Shared:
  """A module of the model's that any layer may call; it sows nothing.

  Attributes:
    variables: what it owns; gradients add up over the layers that call it.
    module: unbound (static).
  """

  variables: Any
  module: nn.Module = struct.field(pytree_node=False)

  def __call__(self, *args: Any) -> Any:
    return self.module.apply(self.variables, *args)


@struct.dataclass
class Context:
  """What every layer may read and none may write.

  Attributes:
    tokens_BT: int32 token ids.
    positions_BT: int32, restarting at 0 in each document.
    segments_BT: int32, 1 and up for the documents of a row, 0 for padding.
    train: whether this is a training call (static).
    shared: the modules that layers share, by name; filled in by the model.
    layer: int32, the place of the block that reads this, from 0; likewise.
    row_scale: f32, for a part of a batch its share of the rows over its share
      of the tokens; parts are averaged by tokens. None for a whole batch.
  """

  tokens_BT: jax.Array
  positions_BT: jax.Array
  segments_BT: jax.Array
  train: bool = struct.field(pytree_node=False, default=False)
  shared: Mapping[str, Shared] = struct.field(default_factory=dict)
  layer: jax.Array | None = None
  row_scale: jax.Array | None = None

  @property
  def valid_N(self) -> jax.Array:
    """bool [N]: the tokens that are not padding."""
    return self.segments_BT.reshape(-1) > 0


@struct.dataclass
class Stream:
  """What flows from block to block.

  Attributes:
    x_BTD: the residual stream.
    held_BTD: what a block has read for a later one; None in a model of which
      no block does.
  """

  x_BTD: jax.Array
  held_BTD: jax.Array | None = None


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

  def counts_NE(self) -> jax.Array:
    """f32 [N, E]: how often each token picked each expert."""
    return self._one_hot().sum(1, dtype=jnp.float32)

  def weights_NE(self) -> jax.Array:
    """f32 [N, E]: the weight of each expert for each token."""
    one_hot = self._one_hot().astype(jnp.float32)
    return jnp.einsum('nke,nk->ne', one_hot, self.weights_NK)

  def _one_hot(self):
    return self.ids_NK[..., None] == jnp.arange(self.num_experts)


@struct.dataclass
class Pairs:
  """Tokens and experts as a list, sorted by expert.

  A token is in it as often as it has experts, so that their number may differ
  between tokens while the length R, and with it the work, is static.

  Attributes:
    tokens_R: int32, the token of each pair.
    ids_R: int32, its expert, ascending; `num_experts` means "no expert": no
      work, no output.
    weights_R: f32 combine weights, 0 where there is no expert.
    logits_NE: f32 router logits, without any selection bias.
  """

  tokens_R: jax.Array
  ids_R: jax.Array
  weights_R: jax.Array
  logits_NE: jax.Array

  @property
  def num_experts(self) -> int:
    return self.logits_NE.shape[-1]

  def sizes_E(self) -> jax.Array:
    """int32 [E]: pairs of each expert."""
    experts = jnp.arange(self.num_experts)
    ends_E = jnp.searchsorted(self.ids_R, experts, side='right')
    return jnp.diff(ends_E, prepend=0).astype(jnp.int32)

  def counts_E(self) -> jax.Array:
    """f32 [E]: how many tokens each expert has."""
    return self.sizes_E().astype(jnp.float32)

  def counts_NE(self) -> jax.Array:
    """f32 [N, E]: how often each token is with each expert."""
    return self._sum_NE(jnp.ones_like(self.weights_R))

  def weights_NE(self) -> jax.Array:
    """f32 [N, E]: the weight of each expert for each token."""
    return self._sum_NE(self.weights_R)

  def _sum_NE(self, value_R):
    zeros = jnp.zeros(self.logits_NE.shape, jnp.float32)
    # The id of "no expert" lies outside and is dropped.
    return zeros.at[self.tokens_R, self.ids_R].add(value_R, mode='drop')


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


Assignment = Chosen | Pairs | Filled | Soft
Rows = Ragged | Padded | Routed | Paired


State = Any

__all__ = [
  'Assignment',
  'Chosen',
  'Combined',
  'Context',
  'Filled',
  'Outputs',
  'Padded',
  'Paired',
  'Pairs',
  'Ragged',
  'Routed',
  'Rows',
  'Shared',
  'Soft',
  'State',
  'Stream',
]
