"""Pieces of the chunked GPU kernels, as they run inside of one program.

Arrays are read as matrices: a row for each token of a batch, and the columns of
all heads one after the other. Values inside of a program are never cut or
joined, Triton has neither; what concerns part of a chunk is masked.
"""

from __future__ import annotations

import math
import types

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.chunked.gpu_sizes import CHUNK, Launch, Sizes
from pallas_kernels.grouped_matmul.gpu_parts import (
  both,
  inside,
  load,
  numbers,
  shaped,
  store,
)

LEVELS = CHUNK.bit_length() - 1  # blocks of 1, 2, .., 32 tokens


def run(body, name, programs, ins, outs, launch: Launch, interpret):
  """Calls `body` for each program, with a namespace of references.

  Args:
    body: namespace -> None; what is `None` in `ins` and `outs` is `None`.
    name: of the kernel.
    programs: how many there are along each axis.
    ins: name -> array or `None`.
    outs: name -> shape and dtype, or `None`.
    launch: how it runs.
    interpret: runs on any platform, slowly.

  Returns:
    A namespace of what was written.
  """
  given = {key: a for key, a in ins.items() if a is not None}
  wanted = {key: a for key, a in outs.items() if a is not None}
  nothing = dict.fromkeys([*ins, *outs])

  def kernel(*refs):
    refs = zip([*given, *wanted], refs, strict=True)
    body(types.SimpleNamespace(**nothing | dict(refs)))

  values = pl.pallas_call(
    kernel,
    out_shape=[shaped(*a, list(given.values())) for a in wanted.values()],
    grid=(math.prod(programs),),
    name=name,
    compiler_params=plgpu.CompilerParams(
      num_warps=launch.num_warps, num_stages=launch.num_stages
    ),
    interpret=interpret,
  )(*given.values())
  found = dict(zip(wanted, values, strict=True))
  return types.SimpleNamespace(**dict.fromkeys(outs) | found)


def place(*programs):
  """Where this program is along each axis; the last runs fastest."""
  at, found = pl.program_id(0), []
  for count in reversed(programs):
    found.append(lax.rem(at, count))
    at = lax.div(at, count)
  return found[::-1]


class Chunk:
  """The tokens of one chunk of one sequence.

  Attributes:
    head, group: of keys, of values.
    rows: int32 [C], of the matrices; they go on past the last token.
    own: bool [C], which tokens exist, or `None` if all do.
  """

  def __init__(self, sizes: Sizes, sequence, number):
    batch = lax.div(sequence, sizes.groups)
    self.group = lax.rem(sequence, sizes.groups)
    self.head = lax.div(self.group, sizes.groups // sizes.heads)
    token = numbers(number * CHUNK, CHUNK)
    self.own = inside(token, sizes.tokens, CHUNK)
    self.rows = batch * sizes.tokens + token

  def _columns(self, head, width, start, block):
    column = numbers(start, block)
    keep = both(self.own, inside(column, width, block))
    return head * width + column, keep

  def load(self, ref, head, width, start=0, block=CHUNK):
    """[C, block] of a head, from column `start` of its `width`.

    A list of them, the parts of a sum, if the array has a leading axis.
    """
    columns, keep = self._columns(head, width, start, block)
    if ref.ndim == 2:
      return load(ref, self.rows, columns, keep)
    parts = range(ref.shape[0])
    return [load(ref, self.rows, columns, keep, (i,)) for i in parts]

  def store(self, ref, value, head, width, start=0):
    """The opposite of `load`; a leading axis takes the parts of the value."""
    columns, keep = self._columns(head, width, start, value.shape[1])
    if ref.ndim == 2:
      store(ref, self.rows, columns, value, keep)
      return
    for i, part in enumerate(split(value, ref.shape[0])):
      store(ref, self.rows, columns, part, keep, (i,))

  def load_column(self, ref):
    """f32 [C]: one number for each token of the group."""
    at = ref.at[self.rows, jnp.full_like(self.rows, self.group)]
    if self.own is None:
      return plgpu.load(at)
    return plgpu.load(at, mask=self.own, other=0.0)

  def store_column(self, ref, value, lead=()):
    at = ref.at[(*lead, self.rows, jnp.full_like(self.rows, self.group))]
    plgpu.store(at, value, mask=self.own)


def square():
  """int32 [C, C] twice: numbers of rows, numbers of columns."""
  shape = (CHUNK, CHUNK)
  return (
    lax.broadcasted_iota(jnp.int32, shape, 0),
    lax.broadcasted_iota(jnp.int32, shape, 1),
  )


def pairs(level):
  """bool [C, C]: row and column are of two blocks of a level that meet.

  Blocks of 2^level tokens meet in twos: the row is of the second, the column
  of the first. Each pair of a row and an earlier column meets in one level.
  """
  row, column = square()
  return (((row >> level) ^ (column >> level)) == 1) & (row > column)


def ones(mask):
  """bf16: 1 where `mask` holds, else 0."""
  return jnp.where(mask, 1.0, 0.0).astype(jnp.bfloat16)


def split(x, count: int):
  """bf16 arrays that sum to x, largest first, of 8 bits each.

  Rounded by hand: XLA takes a conversion to bf16 and back for nothing, and
  what is left over would be 0.
  """
  if isinstance(x, list):
    return x
  if x.dtype == jnp.bfloat16:
    return [x]
  found = []
  for _ in range(count - 1):
    bits = lax.bitcast_convert_type(x, jnp.int32)
    bits = (bits + 0x8000) & jnp.int32(-0x10000)
    high = lax.bitcast_convert_type(bits, jnp.float32)
    found.append(high.astype(jnp.bfloat16))
    x = x - high
  return [*found, x.astype(jnp.bfloat16)]


def total(parts):
  """f32: what `split` took apart."""
  parts = split(parts, 1)
  return sum(part.astype(jnp.float32) for part in reversed(parts))


def dot(a, b, contract: tuple[int, int], parts: int):
  """f32: the product of two blocks over one axis of each.

  A factor that is not in bf16, nor a list of parts that are, is split in so
  many; products of parts too small to matter are left out. Two parts keep 16
  bits, three 24.
  """
  dims = (((contract[0],), (contract[1],)), ((), ()))
  a, b = split(a, parts), split(b, parts)
  terms = [
    (i + j, x, y)
    for i, x in enumerate(a)
    for j, y in enumerate(b)
    if i + j < parts
  ]
  total = None
  for _, x, y in sorted(terms, key=lambda term: -term[0]):
    z = lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)
    total = z if total is None else total + z
  return total


def matrix(a: jax.Array) -> jax.Array:
  """[B, T, ...] -> [B T, ...]."""
  return a.reshape(a.shape[0] * a.shape[1], -1)
