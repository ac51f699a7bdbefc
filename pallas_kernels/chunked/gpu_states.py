"""The states at the borders of chunks, in Triton kernels.

One program for each sequence and block of columns of its state, which stays in
registers in f32 from chunk to chunk. With X of gpu_scores:
  Vn = X beta (V - Kin S),  S <- whole S + Kout^T Vn.
Kin is k decayed from the start of the chunk, Kout up to its end. Without delta,
Vn = V. The rest needs no order and has all chunks at once: see gpu_outputs.
"""

from __future__ import annotations

import types

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.chunked.gpu_decays import HeadDecays
from pallas_kernels.chunked.gpu_parts import Chunk, dot, place, run, total
from pallas_kernels.chunked.gpu_sizes import CHUNK, Sizes
from pallas_kernels.grouped_matmul.gpu_parts import (
  both,
  inside,
  load,
  numbers,
  store,
)


class _Columns:
  """A block of columns of one sequence's states."""

  def __init__(self, sizes: Sizes, sequence, block):
    self.sizes, self.sequence = sizes, sequence
    self.at = block * sizes.v_block, sizes.v_block
    self.channels = numbers(0, sizes.k_whole)
    self.columns = numbers(*self.at)
    self.keep_channels = inside(self.channels, sizes.k, sizes.k_whole)
    self.keep = both(
      self.keep_channels, inside(self.columns, sizes.v, sizes.v_block)
    )

  def load(self, ref, number=0, count=1):
    """[K, block]: state `number` of `count` of the sequence."""
    rows = self._first(number, count) + self.channels
    return load(ref, rows, self.columns, self.keep)

  def store(self, ref, value, number=0, count=1):
    rows = self._first(number, count) + self.channels
    store(ref, rows, self.columns, value, self.keep)

  def _first(self, number, count):
    return (self.sequence * count + number) * self.sizes.k

  def load_value(self, ref, chunk):
    return chunk.load(ref, chunk.group, self.sizes.v, *self.at)

  def store_value(self, ref, value, chunk):
    chunk.store(ref, value, chunk.group, self.sizes.v, self.at[0])

  def keys(self, refs, chunk, number):
    """What the state meets: k_in, k_out, and factors of whole rows.

    Decays of channels are in k already, one for each head is not.
    """
    found = types.SimpleNamespace(k_in=None)
    width, whole = self.sizes.k, (0, self.sizes.k_whole)
    if self.sizes.decay != 'channel':
      found.k_in = found.k_out = chunk.load(refs.k, chunk.head, width, *whole)
      head = HeadDecays(self.sizes, chunk, refs.log)
      found.start, found.end, found.whole = head.start, head.end, head.whole
      return found
    if self.sizes.delta:
      found.k_in = chunk.load(refs.k_in, chunk.group, width, *whole)
    found.k_out = chunk.load(refs.k_out, chunk.group, width, *whole)
    found.start = found.end = 1.0
    row = self.sequence * self.sizes.chunks + number
    at = refs.whole.at[jnp.full_like(self.channels, row), self.channels]
    if self.keep_channels is None:
      found.whole = plgpu.load(at)[:, None]
    else:
      keep = dict(mask=self.keep_channels, other=0.0)
      found.whole = plgpu.load(at, **keep)[:, None]
    return found


def _over_sequences(name, sizes, body, ins, outs, interpret):
  programs = sizes.sequences, sizes.v_blocks

  def each(refs):
    sequence, block = place(*programs)
    body(refs, sequence, _Columns(sizes, sequence, block))

  launch = sizes.launch('states')
  return run(each, name, programs, ins, outs, launch, interpret)


def forward(sizes: Sizes, keys, x, v, beta, state, interpret):
  """Runs over the chunks.

  Args:
    sizes: of the call.
    keys: namespace of k and log, or of `gpu_scores.decayed`.
    x: of `gpu_scores.scores`, `None` without delta like beta.
    v: [B T, G V].
    beta: f32 [B T, G].
    state: f32 [B G K, V], the first.
    interpret: runs on any platform, slowly.

  Returns:
    Namespace of states [B G chunks K, V], those before each chunk, last, f32,
    and with delta new [parts, B T, G V], Vn.
  """
  fine = sizes.fine_parts

  def body(refs, sequence, columns):
    def step(number, state):
      chunk = Chunk(sizes, sequence, number)
      keys = columns.keys(refs, chunk, number)
      columns.store(refs.states, state, number, sizes.chunks)
      new = columns.load_value(refs.v, chunk)
      if sizes.delta:
        new -= keys.start * dot(keys.k_in, state, (1, 0), fine)
        beta = chunk.load_column(refs.beta)[:, None]
        x = chunk.load(refs.x, chunk.group, CHUNK)
        new = dot(x, beta * new, (1, 0), fine)
        columns.store_value(refs.new, new, chunk)
      write = dot(keys.k_out, keys.end * new, (0, 0), fine)
      return keys.whole * state + write

    state = columns.load(refs.state)
    state = lax.fori_loop(0, sizes.chunks, step, state)
    columns.store(refs.last, state)

  outs = dict(
    states=(sizes.borders, sizes.state_dtype),
    last=(state.shape, jnp.float32),
    new=sizes.fine(sizes.v) if sizes.delta else None,
  )
  ins = vars(keys) | dict(x=x, v=v, beta=beta, state=state)
  return _over_sequences('chunk_states', sizes, body, ins, outs, interpret)


def backward(sizes: Sizes, keys, q, x, beta, d_y, d_new, d_last, interpret):
  """Runs over the chunks from the last to the first.

  Args:
    sizes, keys, x, beta: as for `forward`.
    q: [B T, H K], or of `gpu_scores.decayed`.
    d_y: [B T, G V].
    d_new: [parts, B T, G V], what Vn has of it within the chunk.
    d_last: f32 [B G K, V].
    interpret: runs on any platform, slowly.

  Returns:
    Namespace of d_states [B G chunks K, V], gradients of the states after each
    chunk, d_r [B T, G V], of beta (V - Kin S) (of V without delta), and
    d_first, f32.
  """
  fine = sizes.fine_parts

  def body(refs, sequence, columns):
    def step(i, d_state):
      number = sizes.chunks - 1 - i
      chunk = Chunk(sizes, sequence, number)
      keys = columns.keys(refs, chunk, number)
      columns.store(refs.d_states, d_state, number, sizes.chunks)
      d_r = total(columns.load_value(refs.d_new, chunk))
      d_r += keys.end * dot(keys.k_out, d_state, (1, 0), fine)
      if sizes.delta:
        x = chunk.load(refs.x, chunk.group, CHUNK)
        d_r = dot(x, d_r, (0, 0), fine)
      columns.store_value(refs.d_r, d_r, chunk)
      d_y = columns.load_value(refs.d_y, chunk)
      whole = 0, sizes.k_whole
      if sizes.decay == 'channel':
        q = chunk.load(refs.q, chunk.group, sizes.k, *whole)
      else:
        q = chunk.load(refs.q, chunk.head, sizes.k, *whole)
        d_y = sizes.scale * keys.start * d_y
      d_state = keys.whole * d_state + dot(q, d_y, (0, 0), sizes.parts)
      if sizes.delta:
        write = chunk.load_column(refs.beta)[:, None] * keys.start * d_r
        d_state -= dot(keys.k_in, write, (0, 0), fine)
      return d_state

    d_state = columns.load(refs.d_last)
    d_state = lax.fori_loop(0, sizes.chunks, step, d_state)
    columns.store(refs.d_first, d_state)

  outs = dict(
    d_states=(sizes.borders, sizes.state_dtype),
    d_r=(d_y.shape, sizes.fine_dtype),
    d_first=(d_last.shape, jnp.float32),
  )
  ins = dict(q=q, x=x, beta=beta, d_y=d_y, d_new=d_new, d_last=d_last)
  return _over_sequences(
    'chunk_d_states', sizes, body, vars(keys) | ins, outs, interpret
  )
