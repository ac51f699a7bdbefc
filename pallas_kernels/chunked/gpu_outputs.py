"""Outputs from the states at the borders of chunks, in Triton kernels.

One program for each chunk of each sequence and block of columns of its values:
  Y = Q S + A Vn,  and back  A^T dY.
Q is scaled and decayed from the start of the chunk.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from pallas_kernels.chunked.gpu_decays import HeadDecays
from pallas_kernels.chunked.gpu_parts import Chunk, dot, place, run
from pallas_kernels.chunked.gpu_sizes import CHUNK, Sizes
from pallas_kernels.grouped_matmul.gpu_parts import both, inside, load, numbers


def outputs(sizes: Sizes, q, log, a, states, new, interpret):
  """-> y: [B T, G V], with what `gpu_scores` and `gpu_states` return.

  `q` is [B T, H K], or `gpu_scores.decayed` has it.
  """
  programs = sizes.sequences, sizes.chunks, sizes.v_parts
  by_channel = sizes.decay == 'channel'

  def body(refs):
    sequence, number, block = place(*programs)
    chunk = Chunk(sizes, sequence, number)
    at = block * sizes.v_part, sizes.v_part
    columns = numbers(*at)
    keep = inside(columns, sizes.v, sizes.v_part)
    first = (sequence * sizes.chunks + number) * sizes.k

    def add(i, y):
      part = i * sizes.k_block, sizes.k_block
      channels = numbers(*part)
      head = chunk.group if by_channel else chunk.head
      q = chunk.load(refs.q, head, sizes.k, *part)
      keep_both = both(inside(channels, sizes.k, sizes.k_block), keep)
      state = load(refs.states, first + channels, columns, keep_both)
      return y + dot(q, state, (1, 0), sizes.parts)

    y = jnp.zeros((CHUNK, sizes.v_part), jnp.float32)
    y = lax.fori_loop(0, sizes.k_blocks, add, y)
    if not by_channel:
      y *= sizes.scale * HeadDecays(sizes, chunk, refs.log).start
    a = chunk.load(refs.a, chunk.group, CHUNK)
    new = chunk.load(refs.new, chunk.group, sizes.v, *at)
    y += dot(a, new, (1, 0), sizes.fine_parts)
    chunk.store(refs.y, y, chunk.group, sizes.v, at[0])

  ins = dict(q=q, log=log, a=a, states=states, new=new)
  tokens = sizes.batch * sizes.tokens
  outs = dict(y=((tokens, sizes.groups * sizes.v), sizes.dtype))
  launch = sizes.launch('outputs')
  return run(body, 'chunk_outputs', programs, ins, outs, launch, interpret).y


def through_scores(sizes: Sizes, a, d_y, interpret):
  """-> A^T dY [parts, B T, G V]: of Vn, within the chunk."""
  programs = sizes.sequences, sizes.chunks, sizes.v_parts

  def body(refs):
    sequence, number, block = place(*programs)
    chunk = Chunk(sizes, sequence, number)
    at = block * sizes.v_part, sizes.v_part
    a = chunk.load(refs.a, chunk.group, CHUNK)
    d_y = chunk.load(refs.d_y, chunk.group, sizes.v, *at)
    d_new = dot(a, d_y, (0, 0), sizes.fine_parts)
    chunk.store(refs.d_new, d_new, chunk.group, sizes.v, at[0])

  ins, outs = dict(a=a, d_y=d_y), dict(d_new=sizes.fine(sizes.v))
  launch = sizes.launch('d_new')
  return run(body, 'chunk_d_new', programs, ins, outs, launch, interpret).d_new
