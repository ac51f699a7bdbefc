"""What the chunked GPU kernels are specialised to, and how they launch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

CHUNK = 64  # tokens; one tensor core instruction of Hopper has 64 rows
MOST_CHANNELS = 256


def power_of_2(n: int) -> int:
  """The smallest one that is at least n and that a product takes."""
  return max(16, 1 << (n - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Launch:
  """How a kernel runs: warps of 32 threads, blocks of memory in flight."""

  num_warps: int
  num_stages: int


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Static facts of one call.

  Attributes:
    batch, tokens, heads, groups, k, v: B, T, H, G, K, V.
    dtype: of q, k, v and of what is kept between kernels.
    decay: one number for each head, or for each channel of a head, or none.
    delta: whether the state is corrected by what it predicts.
    scale: of the outputs.
  """

  batch: int
  tokens: int
  heads: int
  groups: int
  k: int
  v: int
  dtype: Any
  decay: Literal['none', 'head', 'channel']
  delta: bool
  scale: float

  @property
  def chunks(self) -> int:
    return -(-self.tokens // CHUNK)

  @property
  def sequences(self) -> int:
    return self.batch * self.groups

  @property
  def exact(self) -> bool:
    return self.dtype == jnp.float32

  @property
  def parts(self) -> int:
    """In how many bf16 numbers a factor of a product is split."""
    return 3 if self.exact else 1

  @property
  def fine_parts(self) -> int:
    """The same for all on which the inverse works, if there is one.

    Of keys that are alike it takes differences of neighbours, in which what
    was rounded to bf16 before would come out at several percent.
    """
    return 3 if self.exact else 1 + self.delta

  @property
  def decay_parts(self) -> int:
    """The same for log decays."""
    return 3 if self.exact else 2

  def fine(self, width: int):
    """Shape and dtype of a matrix of tokens that is kept as a sum of parts."""
    tokens = self.batch * self.tokens
    return (self.fine_parts, tokens, self.groups * width), jnp.bfloat16

  @property
  def k_whole(self) -> int:
    return power_of_2(self.k)

  @property
  def k_block(self) -> int:
    """Channels that the kernels of single chunks have at a time."""
    import os
    return min(self.k_whole, int(os.environ.get('KB',0)) or (32 if self.exact else 64))

  @property
  def k_blocks(self) -> int:
    return -(-self.k // self.k_block)

  @property
  def v_block(self) -> int:
    """Columns of the state in one program; all rows of them in registers."""
    import os
    most = int(os.environ.get('VB',0)) or (16 if self.exact else 32)
    return min(power_of_2(self.v), most)

  @property
  def v_blocks(self) -> int:
    return -(-self.v // self.v_block)

  @property
  def v_part(self) -> int:
    """Columns of values that the kernels of single chunks have at a time."""
    return min(power_of_2(self.v), 32 if self.exact else 64)

  @property
  def v_parts(self) -> int:
    return -(-self.v // self.v_part)

  @property
  def borders(self) -> tuple[int, int]:
    """Shape of the states of all chunks, one below the other."""
    return self.sequences * self.chunks * self.k, self.v

  def launch(self, name: str) -> Launch:
    import os
    w=dict(x.split(':') for x in os.environ.get('LAUNCH','').split(';') if x)
    return Launch(*map(int,w.get(name,'4.1').split('.')))
