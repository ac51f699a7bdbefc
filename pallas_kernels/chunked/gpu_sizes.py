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
  def fine_dtype(self):
    """Of what the gradient of the inverse works on."""
    return jnp.dtype(jnp.float32) if self.delta else self.dtype

  @property
  def state_dtype(self):
    """Of the states between chunks and of their gradients.

    The gradient of one decay for each head is a sum over all of both, to which
    they bring the digits that they were rounded to.
    """
    exact = self.delta or self.decay == 'head'
    return jnp.dtype(jnp.float32) if exact else self.dtype

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
    return 16 if self.exact else min(self.k_whole, 32)

  @property
  def k_blocks(self) -> int:
    return -(-self.k // self.k_block)

  @property
  def k_part(self) -> int:
    """Channels in one program of the gradients, with most in registers."""
    return 16 if self.decay == 'channel' else self.k_block

  @property
  def k_parts(self) -> int:
    return -(-self.k // self.k_part)

  @property
  def large(self) -> bool:
    """Whether the states fill registers, and keys shared memory."""
    return self.exact or self.k_whole > 128

  @property
  def v_block(self) -> int:
    """Columns of the state in one program; all rows of them in registers."""
    return min(power_of_2(self.v), 16 if self.large else 32)

  @property
  def v_blocks(self) -> int:
    return -(-self.v // self.v_block)

  @property
  def v_part(self) -> int:
    """Columns of values that the kernels of single chunks have at a time."""
    return min(power_of_2(self.v), 64 if self.fine_parts == 1 else 32)

  @property
  def v_parts(self) -> int:
    return -(-self.v // self.v_part)

  @property
  def borders(self) -> tuple[int, int]:
    """Shape of the states of all chunks, one below the other."""
    return self.sequences * self.chunks * self.k, self.v

  def launch(self, name: str) -> Launch:
    """By kernel; found by compiling, for no spilled register.

    The states go from chunk to chunk, so the next chunk's keys are fetched
    meanwhile where they fit. The others have many programs to wait for.
    """
    if name == 'states' and not self.large:
      return Launch(num_warps=4, num_stages=2)
    if name == 'states' and self.decay != 'channel':
      return Launch(num_warps=8, num_stages=2)
    if name in ('outputs', 'd_new'):
      return Launch(num_warps=4, num_stages=2)
    return Launch(num_warps=8, num_stages=1)
