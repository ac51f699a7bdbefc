"""The states at the borders of chunks, and the outputs, in Triton kernels.

One program for each sequence and block of columns of its state, which stays in
registers in f32 from chunk to chunk. With R = beta (V - Kin S) and the matrices
of gpu_scores:
  Vn = X R,  Y = Q S + A Vn,  S <- whole S + Kout^T Vn.
Q is scaled, and Q and Kin are decayed from the start of the chunk, Kout up to
its end. Without delta, Vn = V.
"""

from __future__ import annotations

import types

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.chunked.gpu_decays import HeadDecays
from pallas_kernels.chunked.gpu_parts import Chunk, dot, place, run
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

  def factors(self, refs, chunk, number):
    """What the state meets: q, k_in, k_out, and factors of whole rows.

    Decays of channels are in q and k already, one for each head is not.
    """
    found = types.SimpleNamespace()
    width, whole = self.sizes.k, (0, self.sizes.k_whole)
    if self.sizes.decay == 'channel':
      if refs.q is not None:
        found.q = chunk.load(refs.q, chunk.group, width, *whole)
      found.k_out = chunk.load(refs.k_out, chunk.group, width, *whole)
      if refs.k_in is not None:
        found.k_in = chunk.load(refs.k_in, chunk.group, width, *whole)
      row = self.sequence * self.sizes.chunks + number
      at = refs.whole.at[jnp.full_like(self.channels, row), self.channels]
      decay = plgpu.load(
        at,
        mask=self.keep_channels,
        other=None if self.keep_channels is None else 0.0,
      )
      found.whole = decay[:, None]
      found.start, found.end, found.scale = 1.0, 1.0, 1.0
      return found
    if refs.q is not None:
      found.q = chunk.load(refs.q, chunk.head, width, *whole)
    found.k_in = found.k_out = chunk.load(refs.k_in, chunk.head, width, *whole)
    head = HeadDecays(self.sizes, chunk, refs.log)
    found.start, found.end, found.whole = head.start, head.end, head.whole
    found.scale = self.sizes.scale
    return found


def _over_sequences(name, sizes, body, ins, outs, interpret):
  programs = sizes.sequences, sizes.v_blocks

  def each(refs):
    sequence, block = place(*programs)
    body(refs, sequence, _Columns(sizes, sequence, block))

  launch = sizes.launch('states')
  return run(each, name, programs, ins, outs, launch, interpret)


def forward(sizes: Sizes, factors, scores, v, beta, state, *, outputs, interpret):
  """Runs over the chunks.

  Args:
    sizes: of the call.
    factors: namespace of q, k_in, k_out, whole and log.
    scores: a and x of `gpu_scores.scores`.
    v: [B T, G V].
    beta: f32 [B T, G] or `None`.
    state: f32 [B G K, V], the first.
    outputs: whether outputs are wanted, or what the gradient needs.
    interpret: runs on any platform, slowly.

  Returns:
    Namespace of y [B T, G V] and last (the state) if `outputs`, else of states
    [B G chunks K, V], before each chunk, and with delta new, Vn.
  """
  fine = sizes.fine_parts

  def body(refs, sequence, columns):
    def step(number, state):
      chunk = Chunk(sizes, sequence, number)
      f = columns.factors(refs, chunk, number)
      if not outputs:
        columns.store(refs.states, state, number, sizes.chunks)
      new = columns.load_value(refs.v, chunk)
      if sizes.delta:
        beta = chunk.load_column(refs.beta)[:, None]
        x = chunk.load(refs.x, chunk.group, CHUNK)
        new -= f.start * dot(f.k_in, state, (1, 0), fine)
        new = dot(x, beta * new, (1, 0), fine)
        if not outputs:
          columns.store_value(refs.new, new, chunk)
      if outputs:
        a = chunk.load(refs.a, chunk.group, CHUNK)
        y = f.scale * f.start * dot(f.q, state, (1, 0), sizes.parts)
        y += dot(a, new, (1, 0), fine)
        columns.store_value(refs.y, y, chunk)
      return f.whole * state + dot(f.k_out, f.end * new, (0, 0), fine)

    state = columns.load(refs.state)
    state = lax.fori_loop(0, sizes.chunks, step, state)
    if outputs:
      columns.store(refs.last, state)

  a, x = scores
  values = v.shape, sizes.dtype
  borders = sizes.sequences * sizes.chunks * sizes.k, sizes.v
  ins = vars(factors) | dict(a=a, x=x, v=v, beta=beta, state=state)
  if outputs:
    outs = dict(y=values, last=(state.shape, jnp.float32), states=None, new=None)
  else:
    new = values if sizes.delta else None
    ins |= dict(a=None, q=None)
    outs = dict(y=None, last=None, states=(borders, sizes.dtype), new=new)
  name = 'chunk_outputs' if outputs else 'chunk_states'
  return _over_sequences(name, sizes, body, ins, outs, interpret)


def backward(sizes: Sizes, factors, scores, beta, d_y, d_last, *, interpret):
  """Runs over the chunks from the last to the first.

  Returns:
    Namespace of d_states [B G chunks K, V], gradients of the states after each
    chunk, d_r [B T, G V], of R (of V without delta), and d_first, f32.
  """
  fine = sizes.fine_parts

  def body(refs, sequence, columns):
    def step(i, d_state):
      number = sizes.chunks - 1 - i
      chunk = Chunk(sizes, sequence, number)
      f = columns.factors(refs, chunk, number)
      columns.store(refs.d_states, d_state, number, sizes.chunks)
      d_y = columns.load_value(refs.d_y, chunk)
      a = chunk.load(refs.a, chunk.group, CHUNK)
      d_r = dot(a, d_y, (0, 0), fine)
      d_r += f.end * dot(f.k_out, d_state, (1, 0), fine)
      if sizes.delta:
        x = chunk.load(refs.x, chunk.group, CHUNK)
        d_r = dot(x, d_r, (0, 0), fine)
      columns.store_value(refs.d_r, d_r, chunk)
      start = f.scale * f.start
      d_state = f.whole * d_state + dot(f.q, start * d_y, (0, 0), sizes.parts)
      if sizes.delta:
        start = chunk.load_column(refs.beta)[:, None] * f.start
        d_state -= dot(f.k_in, start * d_r, (0, 0), fine)
      return d_state

    d_state = columns.load(refs.d_last)
    d_state = lax.fori_loop(0, sizes.chunks, step, d_state)
    columns.store(refs.d_first, d_state)

  a, x = scores
  borders = sizes.sequences * sizes.chunks * sizes.k, sizes.v
  ins = vars(factors) | dict(a=a, x=x, beta=beta, d_y=d_y, d_last=d_last)
  outs = dict(
    d_states=(borders, sizes.dtype),
    d_r=(d_y.shape, sizes.dtype),
    d_first=(d_last.shape, jnp.float32),
  )
  return _over_sequences('chunk_d_states', sizes, body, ins, outs, interpret)
