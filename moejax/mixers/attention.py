"""Softmax attention with grouped queries."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.mixers import cache
from moejax.mixers.core import Core, mean_seen
from moejax.nn import Projection, RmsNorm, rotate
from moejax.types import Context


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
    rope_theta: base of the rotary wavelengths; None rotates nothing.
    rope_frac: share of the head, from its start, that is rotated.
    gate: of the heads' outputs, one of `mixers.gates`; None for none.
  """

  heads: int
  kv_heads: int
  head_dim: int | None = None
  window: int | None = None
  qk_norm: bool = True
  rope_theta: float | None = 10_000.0
  rope_frac: float = 1.0
  gate: nn.Module | None = None

  causal = True

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    ctx: Context,
    state: cache.Cache | None = None,
  ) -> tuple[jax.Array, cache.Cache | None]:
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
    q, k = (self._rotate(a, ctx) for a in (q, k))
    places = None
    if state is not None:
      state, places = state.extend((k, v), ctx, self.window)
      k, v = places.kept
    y = self._core()(q, k, v, ctx, places)
    if self.gate is not None:
      y = self.gate(y, x_BTD, ctx)
    out_axes = ('heads', 'kv', 'embed')
    return Projection((x_BTD.shape[-1],), out_axes, name='out')(y), state

  def _core(self):
    return Core(self.window, name='core')

  def _rotate(self, x, ctx):
    turned, rest = jnp.split(x, [round(x.shape[-1] * self.rope_frac)], -1)
    turned = rotate(turned, ctx.positions_BT, self.rope_theta)
    return jnp.concatenate([turned, rest], -1) if rest.size else turned

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
    turned = round(size * self.rope_frac)
    if turned % 2 and self.rope_theta is not None:
      share = '' if turned == size else f' with rope_frac={self.rope_frac}'
      raise ValueError(
        f'head_dim={size}{share} is odd, and rotary positions turn pairs; '
        'make it even, or set rope_theta to None.'
      )
    return size

  def init_state(self, batch, length, width, dtype) -> cache.Cache:
    """An empty cache of `length` places, or of the window if that is less."""
    size = (self.kv_heads, self._size(width))
    return cache.empty(batch, length, (size, size), dtype, self.window)

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`, seen keys only."""
    size = self._size(width)
    projections = 2 * width * size * (2 * self.heads + 2 * self.kv_heads)
    gate = self.gate.flops(width, self.heads, size) if self.gate else 0
    return projections + self._core_flops(size, length) + gate

  def _core_flops(self, size: int, length: int) -> float:
    return 4 * size * self.heads * mean_seen(length, self.window)
