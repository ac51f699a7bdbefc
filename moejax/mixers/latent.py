"""Softmax attention whose keys and values are made from one small latent."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.mixers import cache
from moejax.mixers.core import Core, mean_seen
from moejax.nn import Projection, RmsNorm, contract, matrix_init, rotate
from moejax.types import Context


class Latent(nn.Module):
  """Multi-head latent attention.

  A token keeps a latent, from which the keys and values of all heads are made,
  and one key that the heads share, the only one with a position: latent_dim +
  rope_dim numbers, 576 at the published 512 + 64. A single token with a state
  reads them as they are, the matrices of keys and values being absorbed into
  its query and output; every other call makes the keys and values.
  Source: 2405.04434 eq. 9 to 19, and sec. 2.1.2 for the absorbed form; not
  rotated: 2510.26692 sec. 5.1.

  Attributes:
    heads: H.
    latent_dim: of the latent that keys and values share.
    nope_dim: of a head's own key, without a position.
    rope_dim: of the key that heads share.
    value_dim: of a head's value.
    query_latent_dim: of the latent of queries; None makes them from x.
    rope_theta: base of the rotary wavelengths; None rotates nothing.
    gate: of the heads' outputs, one of `mixers.gates`; None for none.
  """

  heads: int
  latent_dim: int
  nope_dim: int
  rope_dim: int
  value_dim: int
  query_latent_dim: int | None = None
  rope_theta: float | None = 10_000.0
  gate: nn.Module | None = None

  causal = True

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    ctx: Context,
    state: cache.Cache | None = None,
  ) -> tuple[jax.Array, cache.Cache | None]:
    self._check()
    width, axes = x_BTD.shape[-1], ('latent', 'heads', 'kv')
    inner = self.latent_dim, self.heads
    # [C, H, K] and [C, H, V]: not projections, as decoding turns them round.
    key_up, value_up = (
      self.param(name, matrix_init(axes), (*inner, size), jnp.float32)
      for name, size in (('key', self.nope_dim), ('value', self.value_dim))
    )
    q_nope, q_rope = self._queries(x_BTD, ctx)
    latent_BSC, key_BSR = self._kept(x_BTD, ctx)
    places = None
    if state is not None:
      state, places = state.extend((latent_BSC, key_BSR), ctx)
      latent_BSC, key_BSR = (a.astype(x_BTD.dtype) for a in places.kept)
    core = Core(scale=(self.nope_dim + self.rope_dim) ** -0.5, name='core')
    key_BS1R = key_BSR[:, :, None]
    if state is not None and x_BTD.shape[1] == 1:
      key_up, value_up = (a.astype(x_BTD.dtype) for a in (key_up, value_up))
      # q W^T for the query, (p c) W for the output: c is key and value.
      q_latent = jnp.einsum('bthk,chk->bthc', q_nope, key_up)
      latent_BS1C = latent_BSC[:, :, None]
      y = core(
        jnp.concatenate([q_latent, q_rope], -1),
        jnp.concatenate([latent_BS1C, key_BS1R], -1),
        latent_BS1C,
        ctx,
        places,
      )
      y = jnp.einsum('bthc,chv->bthv', y, value_up)
    else:
      k_nope, v = contract(latent_BSC, key_up), contract(latent_BSC, value_up)
      shared = jnp.broadcast_to(key_BS1R, (*k_nope.shape[:3], self.rope_dim))
      y = core(
        jnp.concatenate([q_nope, q_rope], -1),
        jnp.concatenate([k_nope, shared], -1),
        v,
        ctx,
        places,
      )
    if self.gate is not None:
      y = self.gate(y, x_BTD, ctx)
    out_axes = ('heads', 'kv', 'embed')
    return Projection((width,), out_axes, name='out')(y), state

  def _queries(self, x, ctx):
    """[B, T, H, K] and [B, T, H, R]."""
    first = 'embed'
    if self.query_latent_dim is not None:
      first = 'latent'
      axes = ('embed', first)
      x = Projection((self.query_latent_dim,), axes, name='query_down')(x)
      x = RmsNorm(first, name='query_norm')(x)
    features = (self.heads, self.nope_dim + self.rope_dim)
    q = Projection(features, (first, 'heads', 'kv'), name='query')(x)
    q_nope, q_rope = jnp.split(q, [self.nope_dim], axis=-1)
    return q_nope, rotate(q_rope, ctx.positions_BT, self.rope_theta)

  def _kept(self, x, ctx):
    """What is cached: [B, T, C] and [B, T, R]."""
    features = (self.latent_dim + self.rope_dim,)
    both = Projection(features, ('embed', 'latent'), name='down')(x)
    latent, key = jnp.split(both, [self.latent_dim], axis=-1)
    key = rotate(key[:, :, None], ctx.positions_BT, self.rope_theta)
    return RmsNorm('latent', name='latent_norm')(latent), key[:, :, 0]

  def _check(self):
    if self.rope_dim % 2 and self.rope_theta is not None:
      raise ValueError(
        f'rope_dim={self.rope_dim} is odd, and rotary positions turn pairs; '
        'make it even, or set rope_theta to None.'
      )

  def init_state(self, batch, length, width, dtype) -> cache.Cache:
    """An empty cache of `length` places."""
    del width
    self._check()
    sizes = (self.latent_dim,), (self.rope_dim,)
    return cache.empty(batch, length, sizes, dtype)

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`, seen keys only.

    Of the full form, with its keys and values made.
    """
    size = self.nope_dim + self.rope_dim
    query = width * self.heads * size
    if self.query_latent_dim is not None:
      query = self.query_latent_dim * (width + self.heads * size)
    kept = width * (self.latent_dim + self.rope_dim)
    made = self.latent_dim * self.heads * (self.nope_dim + self.value_dim)
    out = self.heads * self.value_dim * width
    core = self.heads * (size + self.value_dim) * mean_seen(length)
    total = 2 * (query + kept + made + out + core)
    if self.gate is not None:
      total += self.gate.flops(width, self.heads, self.value_dim)
    return total
