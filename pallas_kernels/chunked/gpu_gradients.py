"""Gradients within chunks, in Triton kernels, in closed form.

One program for each chunk of each sequence, and block of channels. Nothing is
differentiated through the inverse: with dR and the gradients of the states
from `gpu_states.backward`, those of L are -tril(dR Vn^T, -1).

Source: the transpose of gpu_scores and gpu_states, by hand.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from pallas_kernels.chunked import gpu_decays as decays
from pallas_kernels.chunked.gpu_parts import (
  LEVELS,
  Chunk,
  dot,
  ones,
  pairs,
  place,
  run,
  square,
  total,
)
from pallas_kernels.chunked.gpu_sizes import CHUNK, Sizes
from pallas_kernels.grouped_matmul.gpu_parts import both, inside, load, numbers


def score_gradients(sizes: Sizes, log, beta, d_y, d_r, new, interpret):
  """What the gradients of inputs have of those of scores.

  Returns:
    d_a: [B T, G C], scale dA,
    d_m: [B T, G C], beta dL; `None` without delta, like the next two,
    d_v: [B T, G V],
    d_beta: f32 [B T, G].
    With a decay for each head, d_a and d_m are multiplied by it.
  """
  programs = sizes.sequences, sizes.chunks
  delta = sizes.delta

  def body(refs):
    sequence, number = place(*programs)
    chunk = Chunk(sizes, sequence, number)
    if delta:
      beta = chunk.load_column(refs.beta)[:, None]

    def add(i, sums):
      at = chunk.group, sizes.v, i * sizes.v_part
      d_y = chunk.load(refs.d_y, *at, sizes.v_part)
      new = chunk.load(refs.new, *at, sizes.v_part)
      d_a = sums[0] + dot(d_y, new, (1, 1), sizes.fine_parts)
      if not delta:
        return (d_a,)
      d_r = chunk.load(refs.d_r, *at, sizes.v_part)
      d_v = beta * d_r
      chunk.store(refs.d_v, d_v, *at)
      d_m = sums[1] - dot(d_v, new, (1, 1), sizes.fine_parts)
      d_beta = (d_r * total(new)).sum(1)
      return d_a, d_m, sums[2] + d_beta

    zeros = jnp.zeros((CHUNK, CHUNK), jnp.float32)
    sums = (zeros, zeros, jnp.zeros((CHUNK,), jnp.float32))
    sums = sums[: 3 if delta else 1]
    d_a, *rest = lax.fori_loop(0, sizes.v_parts, add, sums)
    row, column = square()
    decay = 1.0
    if sizes.decay == 'head':
      decay = decays.between(chunk.load_column(refs.log), sizes.decay_parts)
    d_a = jnp.where(row >= column, sizes.scale * d_a * decay, 0.0)
    chunk.store(refs.d_a, d_a, chunk.group, CHUNK)
    if delta:
      d_m = jnp.where(row > column, rest[0] * decay, 0.0)
      chunk.store(refs.d_m, d_m, chunk.group, CHUNK)
      chunk.store_column(refs.d_beta, rest[1] / beta.sum(1))

  tokens = sizes.batch * sizes.tokens
  square_ = tokens, sizes.groups * CHUNK
  return run(
    body,
    'chunk_d_scores',
    programs,
    dict(
      log=log if sizes.decay == 'head' else None,
      beta=beta,
      d_y=d_y,
      d_r=d_r if delta else None,
      new=new,
    ),
    dict(
      d_a=(square_, sizes.dtype),
      d_m=(square_, sizes.fine_dtype) if delta else None,
      d_v=(d_y.shape, sizes.fine_dtype) if delta else None,
      d_beta=((tokens, sizes.groups), jnp.float32) if delta else None,
    ),
    sizes.launch('d_scores'),
    interpret,
  )


def input_gradients(
  sizes: Sizes, q, k, log, states, d_states, new, d_y, d_v, d_a, d_m, interpret
):
  """Gradients of q, k and the log decays, for each value head.

  Returns:
    d_q, d_k: [B T, G K], in f32 if heads share keys.
    d_log: f32 [B T, G K], or [blocks of channels, B T, G] to be summed if the
      decay is for each head, or `None`.
  """
  programs = sizes.sequences, sizes.chunks, sizes.k_parts

  def body(refs):
    sequence, number, block = place(*programs)
    chunk = Chunk(sizes, sequence, number)
    start = block * sizes.k_part
    q = chunk.load(refs.q, chunk.head, sizes.k, start, sizes.k_part)
    k = chunk.load(refs.k, chunk.head, sizes.k, start, sizes.k_part)
    state = (sequence * sizes.chunks + number) * sizes.k
    d_q, d_k_in, d_k_out, d_whole = _through_states(
      sizes, refs, chunk, state, start
    )
    if sizes.decay == 'channel':
      log = chunk.load(refs.log, chunk.group, sizes.k, start, sizes.k_part)
      from_start = decays.from_start(log, sizes.decay_parts)
      to_end = decays.to_end(log, sizes.decay_parts)
      whole = jnp.exp(log.sum(0))
    else:
      head = decays.HeadDecays(sizes, chunk, refs.log)
      from_start, to_end, whole = head.start, head.end, head.whole
    d_q *= sizes.scale * from_start
    d_k_in *= from_start
    d_k_out *= to_end
    d_whole *= whole
    rises = q * d_q + k * d_k_in
    d_k = d_k_in + d_k_out
    sums = d_q, d_k, rises
    if sizes.decay == 'channel':
      d_q, d_k, rises = _through_decayed_scores(
        sizes, refs, chunk, q, k, log, sums
      )
    else:
      d_q, d_k, rises = _through_scores(sizes, refs, chunk, q, k, sums)
    _store_log(sizes, refs, chunk, block, rises, k * d_k_out, d_whole)
    # A token's own score has no decay.
    row, column = square()
    own = chunk.load(refs.d_a, chunk.group, CHUNK).astype(jnp.float32)
    own = jnp.where(row == column, own, 0.0).sum(1)[:, None]
    out = chunk.group, sizes.k, start
    chunk.store(refs.d_q, d_q + own * k, *out)
    chunk.store(refs.d_k, d_k + own * q, *out)

  tokens = sizes.batch * sizes.tokens
  dtype = sizes.dtype if sizes.heads == sizes.groups else jnp.float32
  shape = (tokens, sizes.groups * sizes.k), dtype
  d_log = {
    'none': None,
    'head': ((sizes.k_parts, tokens, sizes.groups), jnp.float32),
    'channel': (shape[0], jnp.float32),
  }[sizes.decay]
  ins = dict(q=q, k=k, log=log, states=states, d_states=d_states, new=new)
  return run(
    body,
    'chunk_d_inputs',
    programs,
    ins | dict(d_y=d_y, d_v=d_v, d_a=d_a, d_m=d_m),
    dict(d_q=shape, d_k=shape, d_log=d_log),
    sizes.launch('d_inputs'),
    interpret,
  )


def _through_states(sizes, refs, chunk, state, start):
  """-> gradients of the decayed q, k_in, k_out [C, block], and of `whole`.

  Decays and the scale are the caller's to multiply by.
  """
  channels = numbers(start, sizes.k_part)
  keep_channels = inside(channels, sizes.k, sizes.k_part)

  def add(i, sums):
    d_q, d_k_in, d_k_out, d_whole = sums
    first = i * sizes.v_part
    columns = numbers(first, sizes.v_part)
    keep = both(keep_channels, inside(columns, sizes.v, sizes.v_part))
    before = load(refs.states, state + channels, columns, keep)
    d_after = load(refs.d_states, state + channels, columns, keep)
    at = chunk.group, sizes.v, first, sizes.v_part
    d_y, new = chunk.load(refs.d_y, *at), chunk.load(refs.new, *at)
    d_q += dot(d_y, before, (1, 1), sizes.parts)
    if sizes.delta:
      d_v = chunk.load(refs.d_v, *at)
      d_k_in -= dot(d_v, before, (1, 1), sizes.fine_parts)
    d_k_out += dot(new, d_after, (1, 1), sizes.fine_parts)
    d_whole += (before.astype(jnp.float32) * d_after).sum(1)
    return d_q, d_k_in, d_k_out, d_whole

  zeros = jnp.zeros((CHUNK, sizes.k_part), jnp.float32)
  sums = (zeros,) * 3 + (jnp.zeros((sizes.k_part,), jnp.float32),)
  return lax.fori_loop(0, sizes.v_parts, add, sums)


def _through_scores(sizes, refs, chunk, q, k, sums):
  """Adds what comes through q k^T and k k^T to d_q, d_k and rises."""
  d_q, d_k, rises = sums
  row, column = square()
  d_a = chunk.load(refs.d_a, chunk.group, CHUNK)
  d_a = jnp.where(row > column, d_a, 0).astype(d_a.dtype)
  of_q = dot(d_a, k, (1, 0), sizes.parts)
  of_k = dot(d_a, q, (0, 0), sizes.parts)
  d_q, d_k = d_q + of_q, d_k + of_k
  rises += q * of_q - k * of_k
  if sizes.delta:
    d_m = chunk.load(refs.d_m, chunk.group, CHUNK)
    as_row = dot(d_m, k, (1, 0), sizes.fine_parts)
    as_column = dot(d_m, k, (0, 0), sizes.fine_parts)
    d_k += as_row + as_column
    rises += k * (as_row - as_column)
  return d_q, d_k, rises


def _through_decayed_scores(sizes, refs, chunk, q, k, log, sums):
  """The same with a decay for each channel.

  What is multiplied for `rises` is what was multiplied for the scores, rounded:
  a pair of tokens counts for the one and against the other, and must cancel.
  """
  d_a = chunk.load(refs.d_a, chunk.group, CHUNK)
  d_m = chunk.load(refs.d_m, chunk.group, CHUNK) if sizes.delta else None

  def add(level, sums):
    d_q, d_k, rises = sums
    decay = decays.to_seam(log, level, sizes.decay_parts)
    k_seam = (k * decay).astype(sizes.dtype)
    q_seam = (q * decay).astype(sizes.dtype)
    meet = pairs(level)
    part = jnp.where(meet, d_a, 0).astype(d_a.dtype)
    of_q = dot(part, k_seam, (1, 0), sizes.parts)
    of_k = dot(part, q_seam, (0, 0), sizes.parts)
    against = of_k
    if d_m is not None:
      part = jnp.where(meet, d_m, 0).astype(d_m.dtype)
      as_row = dot(part, k_seam, (1, 0), sizes.fine_parts)
      as_column = dot(part, k_seam, (0, 0), sizes.fine_parts)
      of_k += as_row + as_column
      against += as_column - as_row
    rises += q_seam * of_q - k_seam * against
    return d_q + decay * of_q, d_k + decay * of_k, rises

  return lax.fori_loop(0, LEVELS, add, sums)


def _store_log(sizes, refs, chunk, block, rises, falls, d_whole):
  """The gradient of a log decay: of all that it decays.

  At t: what the tokens from t on take in (less what they give out to tokens
  after t, which cancels), what those before t give to the end of the chunk,
  and the state before the chunk. A total less a sum would lose digits.
  """
  row, token = square()
  if sizes.decay == 'channel':
    parts = sizes.decay_parts
    d_log = dot(ones(token >= row), rises, (1, 0), parts)
    d_log += dot(ones(token < row), falls, (1, 0), parts)
    d_log += d_whole[None, :]
    chunk.store(refs.d_log, d_log, chunk.group, sizes.k, block * sizes.k_part)
  elif sizes.decay == 'head':
    rises, falls = rises.sum(1)[None, :], falls.sum(1)[None, :]
    d_log = jnp.where(token >= row, rises, falls).sum(1) + d_whole.sum()
    chunk.store_column(refs.d_log, d_log, (block,))
