"""Sequences as groups of chunks, and back."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.chunked.inputs import wide_dtype

# Numbers of one array [m, N, C, K]: a dozen such stay in a cache.
GROUP = 1 << 16
# Tokens of a chunk.
CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Fold:
  """How [B, T, heads, D] becomes groups of [m, N, C, D].

  Attributes:
    groups: of chunks.
    m: chunks of a group.
    N: rows times value heads.
    C: tokens of a chunk.
    B: rows.
    T: tokens of a row; those past it, in the last chunk, are padding.
    shared: value heads of a key head.
    channels: of the decay; 1 if all share it, or there is none.
  """

  groups: int
  m: int
  N: int
  C: int
  B: int
  T: int
  shared: int
  channels: int

  @classmethod
  def of(cls, q, v, log_decay, chunk):
    B, T, H, K = q.shape
    G, V = v.shape[2:]
    per_channel = log_decay is not None and log_decay.ndim == 4
    # No more than the power of two that holds the sequence.
    C = min(chunk or CHUNK, 1 << (T - 1).bit_length())
    chunks = -(-T // C)
    size = B * G * C * max(K, V)
    groups = -(-chunks // max(1, min(chunks, GROUP // size)))
    m = -(-chunks // groups)
    channels = K if per_channel else 1
    return cls(-(-chunks // m), m, B * G, C, B, T, G // H, channels)

  def padded(self, x):
    """[B, T', heads, D]; padded by zeros, which change no state."""
    x = x.reshape(*x.shape[:3], -1)
    padding = self.groups * self.tokens - self.T
    return jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0)))

  def take(self, x, group):
    """[m, N, C, D]: one group of what is `padded`."""
    x = jax.lax.dynamic_slice_in_dim(x, group * self.tokens, self.tokens, 1)
    x = x.reshape(self.B, self.m, self.C, *x.shape[2:])
    x = x.transpose(1, 0, 3, 2, 4)
    return x.reshape(self.m, -1, self.C, x.shape[-1])

  def put(self, all_x, x, group):
    """Undoes `take`: writes one group [m, N, C, D] into its place."""
    x = x.reshape(self.m, self.B, -1, self.C, x.shape[-1])
    x = x.transpose(1, 0, 3, 2, 4).astype(all_x.dtype)
    x = x.reshape(self.B, self.tokens, *all_x.shape[2:])
    start = group * self.tokens
    return jax.lax.dynamic_update_slice_in_dim(all_x, x, start, 1)

  def empty(self, x):
    """For `put`: like x, with the padding."""
    shape = self.B, self.groups * self.tokens, *x.shape[2:]
    return jnp.zeros(shape, x.dtype)

  @property
  def tokens(self):
    """Of a row in a group."""
    return self.m * self.C

  def state(self, state):
    return state.reshape(self.N, *state.shape[2:])

  def flat(self, tree):
    """[m, N, ..] -> [m N, ..]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

  def steps(self, tree):
    """Undoes `flat`."""
    return jax.tree.map(lambda x: x.reshape(self.m, self.N, *x.shape[1:]), tree)

  def wide(self, x):
    """A group's inputs [m N, C, .], in the dtype of sums, per value head."""
    dtype = wide_dtype(x[2].dtype)
    q, k, *rest = x
    q, k = (jnp.repeat(x, self.shared, axis=1) for x in (q, k))
    return [
      None if x is None else self.flat(x).astype(dtype) for x in (q, k, *rest)
    ]

  def key_heads(self, x):
    """[m N, C, K] of value heads, summed for each key head: [m, N', C, K]."""
    x = x.reshape(self.m, -1, self.shared, *x.shape[1:])
    return x[:, :, 0] if self.shared == 1 else x.sum(2)
