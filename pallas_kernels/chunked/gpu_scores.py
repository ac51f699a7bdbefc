"""What the tokens of a chunk are to each other: scores and their inverse.

One program for each chunk of each sequence. With D the decay between two
tokens, in f32 until they are stored:
  A = scale tril(q k^T D),  L = beta tril(k k^T D, -1),  X = (1 + L)^-1.
"""

from __future__ import annotations

import types

import jax.numpy as jnp
from jax import lax

from pallas_kernels.chunked import gpu_decays as decays
from pallas_kernels.chunked.gpu_parts import (
  LEVELS,
  Chunk,
  dot,
  pairs,
  place,
  run,
  split,
  square,
)
from pallas_kernels.chunked.gpu_sizes import CHUNK, Sizes
from pallas_kernels.grouped_matmul.gpu_parts import inside, numbers, store


def scores(sizes: Sizes, q, k, log, beta, interpret):
  """-> a, x: [parts, B T, G C] each, see `Sizes.fine`; no x without delta."""
  programs = sizes.sequences, sizes.chunks
  by_channel = sizes.decay == 'channel'

  def body(refs):
    sequence, number = place(*programs)
    chunk = Chunk(sizes, sequence, number)

    def add(i, sums):
      at = i * sizes.k_block, sizes.k_block
      q = chunk.load(refs.q, chunk.head, sizes.k, *at)
      k = chunk.load(refs.k, chunk.head, sizes.k, *at)
      if by_channel:
        log = chunk.load(refs.log, chunk.group, sizes.k, *at)
        return _decayed_scores(sizes, q, k, log, sums)
      lefts = (q, k) if sizes.delta else (q,)
      return tuple(
        s + dot(left, k, (1, 1), sizes.parts)
        for s, left in zip(sums, lefts, strict=True)
      )

    zeros = jnp.zeros((CHUNK, CHUNK), jnp.float32)
    sums = (zeros,) * (2 if sizes.delta else 1)
    a, *rest = lax.fori_loop(0, sizes.k_blocks, add, sums)
    row, column = square()
    decay = 1.0
    if not by_channel:
      log = chunk.load_column(refs.log) if sizes.decay == 'head' else None
      decay = decays.between(log, sizes.decay_parts)
    chunk.store(refs.a, sizes.scale * a * decay, chunk.group, CHUNK)
    if sizes.delta:
      beta = chunk.load_column(refs.beta)[:, None]
      lower = jnp.where(row > column, beta * rest[0] * decay, 0.0)
      inverse = ladder(lower, sizes.fine_parts)
      chunk.store(refs.x, inverse, chunk.group, CHUNK)

  found = run(
    body,
    'chunk_scores',
    programs,
    dict(q=q, k=k, log=log, beta=beta),
    dict(a=sizes.fine(CHUNK), x=sizes.fine(CHUNK) if sizes.delta else None),
    sizes.launch('scores'),
    interpret,
  )
  return found.a, found.x


def _decayed_scores(sizes, q, k, log, sums):
  """Adds some channels' part of q k^T D and k k^T D, for later rows."""
  parts = sizes.fine_parts

  def add(level, sums):
    decay = decays.to_seam(log, level, sizes.decay_parts)
    k_seam = split(k * decay, parts)
    lefts = [q * decay, k_seam][: len(sums)]
    return tuple(
      s + jnp.where(pairs(level), dot(left, k_seam, (1, 1), parts), 0.0)
      for s, left in zip(sums, lefts, strict=True)
    )

  row, column = square()
  own = (q.astype(jnp.float32) * k).sum(1)[:, None]
  a = sums[0] + jnp.where(row == column, own, 0.0)
  # A loop, or what all levels need would be kept in registers at once.
  return lax.fori_loop(0, LEVELS, add, (a, *sums[1:]))


def ladder(lower_CC, parts: int):
  """f32 [C, C]: the inverse of 1 + L, L strictly lower.

  Inverses of diagonal blocks become those of blocks twice as large:
  X <- X - X S X with S the part of L between two neighbours. No power of L is
  formed: those of like keys grow as binomials and cancel.
  """
  row, column = square()
  inverse = jnp.where(row == column, 1.0, 0.0)
  inverse -= jnp.where(pairs(0), lower_CC, 0.0)

  def grow(level, inverse):
    between = jnp.where(pairs(level), lower_CC, 0.0)
    left = dot(inverse, between, (1, 0), parts)
    return inverse - dot(left, inverse, (1, 0), parts)

  return lax.fori_loop(1, LEVELS, grow, inverse)


def decayed(sizes: Sizes, q, k, log, interpret):
  """q and k times the decays of each channel, for the states.

  Returns:
    q [parts, B T, G K], scaled and decayed from the start of the chunk, and a
    namespace of
    k_in: k decayed from the start, `None` without delta,
    k_out: k decayed up to the end; both in parts, see `Sizes.fine`,
    whole: f32 [B G chunks, K], decays of whole chunks.
  """
  programs = sizes.sequences, sizes.chunks, sizes.k_blocks

  def body(refs):
    sequence, number, block = place(*programs)
    chunk = Chunk(sizes, sequence, number)
    at = block * sizes.k_block, sizes.k_block
    q = chunk.load(refs.q_in, chunk.head, sizes.k, *at)
    k = chunk.load(refs.k, chunk.head, sizes.k, *at)
    log = chunk.load(refs.log, chunk.group, sizes.k, *at)
    start = decays.from_start(log, sizes.decay_parts)
    end = decays.to_end(log, sizes.decay_parts)
    out = chunk.group, sizes.k, at[0]
    chunk.store(refs.q, sizes.scale * q * start, *out)
    if sizes.delta:
      chunk.store(refs.k_in, k * start, *out)
    chunk.store(refs.k_out, k * end, *out)
    columns = numbers(*at)
    keep = inside(columns, sizes.k, sizes.k_block)
    keep = None if keep is None else keep[None, :]
    rows = (sequence * sizes.chunks + number)[None]
    whole = jnp.exp(log.sum(0))[None, :]
    store(refs.whole, rows, columns, whole, keep)

  fine = sizes.fine(sizes.k)
  whole = (sizes.sequences * sizes.chunks, sizes.k), jnp.float32
  found = run(
    body,
    'chunk_decayed',
    programs,
    dict(q_in=q, k=k, log=log),
    dict(
      q=((sizes.parts, *fine[0][1:]), jnp.bfloat16),
      k_in=fine if sizes.delta else None,
      k_out=fine,
      whole=whole,
    ),
    sizes.launch('decayed'),
    interpret,
  )
  keys = dict(k_in=found.k_in, k_out=found.k_out, whole=found.whole)
  return found.q, types.SimpleNamespace(**keys)
