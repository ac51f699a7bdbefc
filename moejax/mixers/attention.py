"""Softmax attention with grouped queries."""

from __future__ import annotations

import flax.linen as nn
import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.nn import Projection, RmsNorm, attend, rotate
from moejax.types import Context


@struct.dataclass
class Cache:
  """Keys and values seen so far.

  Attributes:
    keys_BSHD, values_BSHD: [B, S, kv heads, head_dim].
    positions_BS, segments_BS: int32; segment 0 marks free and padded places.
    length: int32, the places filled.
  """

  keys_BSHD: jax.Array
  values_BSHD: jax.Array
  positions_BS: jax.Array
  segments_BS: jax.Array
  length: jax.Array

  def extend(self, keys, values, ctx: Context) -> Cache:
    """Appends T places. The caller sees to it that they fit."""

    def put(old, new):
      start = (0, self.length) + (0,) * (old.ndim - 2)
      return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)

    return Cache(
      keys_BSHD=put(self.keys_BSHD, keys),
      values_BSHD=put(self.values_BSHD, values),
      positions_BS=put(self.positions_BS, ctx.positions_BT),
      segments_BS=put(self.segments_BS, ctx.segments_BT),
      length=self.length + keys.shape[1],
    )


class Attention(nn.Module):
  """Causal attention within documents, with rotary positions.

  Grouped queries: 2305.13245. QK-norm: 2302.05442 sec. 2.1, with RMS norms
  per head. A window sees a token and the window - 1 before it.

  Attributes:
    heads: query heads.
    kv_heads: key and value heads; they must divide the heads.
    head_dim: None for width / heads.
    window: tokens seen, None for all of the document.
    qk_norm: whether queries and keys are normalised before rotation.
    rope_theta: base of the rotary wavelengths.
  """

  heads: int
  kv_heads: int
  head_dim: int | None = None
  window: int | None = None
  qk_norm: bool = True
  rope_theta: float = 10_000.0

  causal = True

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, ctx: Context, state: Cache | None = None
  ) -> tuple[jax.Array, Cache | None]:
    size = self._size(x_BTD.shape[-1])
    axes = ('embed', 'heads', 'kv')

    def project(name, heads):
      return Projection((heads, size), axes, name=name)(x_BTD)

    q, k = project('query', self.heads), project('key', self.kv_heads)
    v = project('value', self.kv_heads)
    if self.qk_norm:
      q, k = (
        RmsNorm('kv', name='query_norm')(q),
        RmsNorm('kv', name='key_norm')(k),
      )
    q = rotate(q, ctx.positions_BT, self.rope_theta)
    k = rotate(k, ctx.positions_BT, self.rope_theta)
    if state is None:
      key_positions, key_segments = ctx.positions_BT, ctx.segments_BT
    else:
      state = state.extend(k, v, ctx)
      k, v = state.keys_BSHD.astype(q.dtype), state.values_BSHD.astype(q.dtype)
      key_positions, key_segments = state.positions_BS, state.segments_BS
    mask = self._mask(ctx, key_positions, key_segments)
    y = attend(q, k, v, mask)
    out_axes = ('heads', 'kv', 'embed')
    return Projection((x_BTD.shape[-1],), out_axes, name='out')(y), state

  def _mask(self, ctx, key_positions, key_segments):
    """bool [B, T, S]: same document, not later, within the window."""
    behind = ctx.positions_BT[:, :, None] - key_positions[:, None, :]
    seen = behind >= 0
    if self.window is not None:
      seen &= behind < self.window
    # Padding (segment 0) sees padding: a row without any key would be nan.
    return seen & (ctx.segments_BT[:, :, None] == key_segments[:, None, :])

  def _size(self, width: int) -> int:
    if self.heads % self.kv_heads:
      raise ValueError(
        f'kv_heads={self.kv_heads} does not divide heads={self.heads}; '
        'choose a divisor.'
      )
    if self.head_dim is None and width % self.heads:
      raise ValueError(
        f'heads={self.heads} does not divide width={width}; choose a divisor '
        'or set head_dim.'
      )
    size = self.head_dim or width // self.heads
    if size % 2:
      raise ValueError(
        f'head_dim={size} is odd, and rotary positions turn pairs; make it '
        'even.'
      )
    return size

  def init_state(self, batch, length, width, dtype) -> Cache:
    """An empty cache of `length` places."""
    shape = (batch, length, self.kv_heads, self._size(width))
    return Cache(
      keys_BSHD=jnp.zeros(shape, dtype),
      values_BSHD=jnp.zeros(shape, dtype),
      positions_BS=jnp.zeros(shape[:2], jnp.int32),
      segments_BS=jnp.zeros(shape[:2], jnp.int32),
      length=jnp.zeros((), jnp.int32),
    )

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`, seen keys only."""
    size = self._size(width)
    projections = 2 * width * size * (2 * self.heads + 2 * self.kv_heads)
    window = min(length, self.window or length)
    # On average: the first tokens of a sequence see less than the window.
    seen = window * (1 - window / (2 * length))
    return projections + 4 * size * self.heads * seen
