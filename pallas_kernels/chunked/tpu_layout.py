"""Arrays as the TPU kernels of chunked recurrences see them.

Tokens of one head are a block of columns of [B, T, heads * width], with widths
in whole registers of 128 lanes, so that nothing is transposed and index maps
repeat keys for the value heads that share them. One number a token and head is
[B, G, N, 1, C], a state [B, G, V, K].
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from pallas_kernels import chips

LANES = 128
# States of the value heads that share a key; a kernel holds five times that.
SHARED_BYTES = chips.MIB // 2
CHUNK = 64
# From one packed register of bf16 to where masks fill the matrix unit.
CHUNKS = (16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Problem:
  """Sizes of one call; `keys` and `values` are what there is without padding.

  Attributes:
    decay: 'none', 'head' or 'channel'.
  """

  batch: int
  tokens: int
  heads: int
  value_heads: int
  keys: int
  values: int
  chunk: int
  decay: str
  dtype: jnp.dtype

  OF_TOKENS = ('key', 'decay', 'value')

  @classmethod
  def of(cls, q_BTHK, v_BTGV, log_decay, chunk) -> Problem:
    kind = 'none'
    if log_decay is not None:
      kind = 'head' if log_decay.ndim == 3 else 'channel'
    b, t, h, k = q_BTHK.shape
    if chunk is None:
      chunk = min(c for c in CHUNKS if c >= min(t, CHUNK))
    g, v = v_BTGV.shape[2:]
    return cls(b, t, h, g, k, v, chunk, kind, q_BTHK.dtype)

  @property
  def full(self) -> bool:
    return self.dtype == jnp.float32

  @property
  def chunks(self) -> int:
    return -(-self.tokens // self.chunk)

  @property
  def lanes(self) -> tuple[int, int]:
    """Widths of keys and of values in whole registers."""
    return _up(self.keys, LANES), _up(self.values, LANES)

  @property
  def group(self) -> int:
    """Value heads of a key head."""
    return self.value_heads // self.heads

  @property
  def shared(self) -> int:
    """Value heads whose gradients for one key head are summed in a kernel."""
    k, v = self.lanes
    most = max(1, SHARED_BYTES // (4 * k * v))
    return max(
      n for n in range(1, self.group + 1) if self.group % n == 0 and n <= most
    )

  @property
  def steps(self) -> int:
    """Chunks of all sequences and value heads."""
    return self.batch * self.value_heads * self.chunks

  def of_tokens(self, x_BTHD):
    """[B, T, H, D] -> [B, N C, H W], padded with zeros."""
    b, t, h, d = x_BTHD.shape
    pad = self.chunks * self.chunk - t, _up(d, LANES) - d
    x = jnp.pad(x_BTHD, ((0, 0), (0, pad[0]), (0, 0), (0, pad[1])))
    return x.reshape(b, t + pad[0], -1)

  def to_tokens(self, x, heads, width):
    """Undoes `of_tokens`."""
    x = x.reshape(*x.shape[:2], heads, -1)
    return x[:, : self.tokens, :, :width]

  def of_numbers(self, x_BTG):
    """[B, T, G] -> [B, G, N, 1, C], padded with zeros."""
    x = jnp.pad(
      x_BTG, ((0, 0), (0, self.chunks * self.chunk - self.tokens), (0, 0))
    )
    x = x.reshape(self.batch, self.chunks, self.chunk, self.value_heads)
    return x.transpose(0, 3, 1, 2)[:, :, :, None]

  def to_numbers(self, x):
    """Undoes `of_numbers`."""
    x = x[:, :, :, 0].transpose(0, 2, 3, 1)
    return x.reshape(self.batch, -1, self.value_heads)[:, : self.tokens]

  def of_state(self, state_BGKV):
    """[B, G, K, V] -> [B, G, V, K], padded with zeros."""
    k, v = self.lanes
    pad = ((0, 0), (0, 0), (0, v - self.values), (0, k - self.keys))
    return jnp.pad(jnp.swapaxes(state_BGKV, 2, 3), pad)

  def to_state(self, x):
    """Undoes `of_state`."""
    return jnp.swapaxes(x[:, :, : self.values, : self.keys], 2, 3)

  def of_decay(self, log_decay):
    """The log decay as kernels read it: of tokens, numbers, or nothing."""
    if log_decay is None:
      return None
    if log_decay.ndim == 3:
      return self.of_numbers(log_decay)
    return self.of_tokens(log_decay)

  def to_decay(self, x):
    """Undoes `of_decay`."""
    if x is None:
      return None
    if self.decay == 'head':
      return self.to_numbers(x)
    return self.to_tokens(x, self.value_heads, self.keys)

  @property
  def decay_form(self) -> str:
    return 'number' if self.decay == 'head' else 'decay'

  def block(self, form: str) -> tuple[int, int]:
    """The last two axes of a block."""
    k, v = self.lanes
    return {
      'key': (self.chunk, k),
      'decay': (self.chunk, k),
      'value': (self.chunk, v),
      'number': (1, self.chunk),
      'pair': (self.chunk, 2 * self.chunk),
      'state': (v, k),
      'end': (v, k),
    }[form]

  def shape(self, form: str, heads: int) -> tuple[int, ...]:
    """Of a whole array."""
    rows, columns = self.block(form)
    if form in self.OF_TOKENS:
      return self.batch, self.chunks * self.chunk, heads * columns
    if form == 'end':
      return self.batch, heads, rows, columns
    return self.batch, heads, self.chunks, rows, columns


def _up(n: int, step: int) -> int:
  return -(-n // step) * step
