"""The chunked recurrences in plain XLA, with their closed-form gradients.

Chunks are worked on in groups that stay in a cache: all that does not need the
state for a whole group at once, then its chunks one after the other. `beta` is
`None` for linear attention; the delta rule adds what depends on it. Source of
the chunked form: 2406.06484 eq. 8 to 11, 2510.26692 sec. 3.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.chunked import decays, per_channel, per_head
from pallas_kernels.chunked.blocks import product
from pallas_kernels.chunked.fold import Fold
from pallas_kernels.chunked.inputs import wide_dtype
from pallas_kernels.chunked.reach import Reach, times
from pallas_kernels.chunked.triangle import (
  resolvent,
  solve,
  solve_transposed,
)

# Chunks of a group that are written out one after the other, without a loop.
UNROLL = 8


class Kept(NamedTuple):
  """What the backward pass needs, for each group.

  States within a group are made again, as they take more time to be written
  to memory and read than to be computed.

  Attributes:
    scores: [m, N, C, C], of queries with keys.
    resolvent: [m, N, C, C] of the triangle, or `None`.
    errors: [m, N, C, V]: v less what the state held, or `None`.
    state: [N, K, V], before the group.
  """

  scores: jax.Array
  resolvent: jax.Array | None
  errors: jax.Array | None
  state: jax.Array


def forward(q, k, v, log_decay, beta, state, *, scale, chunk, keep):
  fold = Fold.of(q, v, log_decay, chunk)
  inputs = jax.tree.map(fold.padded, (q, k, v, log_decay, beta))

  def step(carry, group):
    S_NKV, y_all = carry
    x = _take(fold, inputs, group)
    S_NKV, y, kept = _forward_group(fold, scale, S_NKV, x)
    return (S_NKV, fold.put(y_all, y, group)), kept if keep else ()

  carry = fold.state(state), fold.empty(v)
  (S_NKV, y), kept = jax.lax.scan(step, carry, jnp.arange(fold.groups))
  return (y[:, : fold.T], S_NKV.reshape(state.shape)), kept


def shapes(q, k, v, log_decay, beta, _state, *, scale, chunk):
  """Of what `forward` keeps."""
  fold = Fold.of(q, v, log_decay, chunk)
  dtype = wide_dtype(v.dtype)

  def array(*sizes):
    return jax.ShapeDtypeStruct((fold.groups, *sizes), dtype)

  m, N, C, K, V = fold.m, fold.N, fold.C, k.shape[-1], v.shape[-1]
  delta = beta is not None
  return Kept(
    array(m, N, C, C),
    array(m, N, C, C) if delta else None,
    array(m, N, C, V) if delta else None,
    array(N, K, V),
  )


def backward(args, kept, d_outs, *, scale, chunk):
  q, k, v, log_decay, beta, state = args
  fold = Fold.of(q, v, log_decay, chunk)
  dy_BTGV, dstate = d_outs

  given = q, k, v, log_decay, beta
  inputs = jax.tree.map(fold.padded, given)
  dy_BTGV = fold.padded(dy_BTGV)

  def step(carry, x):
    dS_NKV, all_grads = carry
    group, kept = x
    x, dy = _take(fold, (inputs, dy_BTGV), group)
    dS_NKV, grads = _backward_group(fold, scale, dS_NKV, x, kept, dy)
    put = functools.partial(fold.put, group=group)
    return (dS_NKV, jax.tree.map(put, all_grads, grads)), None

  carry = fold.state(dstate), jax.tree.map(fold.empty, given)
  xs = jnp.arange(fold.groups), kept
  (dS_NKV, grads), _ = jax.lax.scan(step, carry, xs, reverse=True)
  grads = jax.tree.map(lambda x: x[:, : fold.T], grads)
  return (*grads, dS_NKV.reshape(state.shape))


def _take(fold, inputs, group):
  return jax.tree.map(lambda x: fold.take(x, group), inputs)


class _Group(NamedTuple):
  """Inputs of a group, [n, C, .] in f32, for each value head."""

  q: jax.Array
  k: jax.Array
  v: jax.Array
  beta: jax.Array | None
  levels: list[decays.Level] | None
  kind: object

  @property
  def rows(self):
    return (self.q,) if self.beta is None else (self.q, self.k)


def _group(fold, scale, x) -> _Group:
  q, k, v, log_decay, beta = fold.wide(x)
  levels = None if log_decay is None else decays.levels(log_decay)
  kind = per_channel if fold.channels > 1 else per_head
  return _Group(scale * q, k, v, beta, levels, kind)


def _forward_group(fold, scale, S_NKV, x):
  g = _group(fold, scale, x)
  scores, blocks = g.kind.scores(g.levels, g.rows, g.k)
  y = None if blocks is None else resolvent(blocks, g.beta)
  reach = g.kind.reach(g.levels, g.rows, g.k)

  def step(S, x):
    reach, y, v, beta = x
    read = product('nik,nkv->niv', reach.reads, S)
    read = times(reach.before, read)
    error = v if y is None else solve(y, beta, v - read[:, fold.C :])
    written = times(reach.after, times(beta, error))
    kept = None if y is None else error
    return _write(reach, S, written), (kept, read[:, : fold.C])

  xs = fold.steps((reach, y, g.v, g.beta))
  end_NKV, (errors, read) = _chunks(step, S_NKV, xs)
  written = g.v if errors is None else g.beta * fold.flat(errors)
  inside = product('nij,njv->niv', scores, written)
  kept = Kept(*fold.steps((scores, y)), errors, S_NKV)
  return end_NKV, read + fold.steps(inside), kept


def _backward_group(fold, scale, dS_NKV, x, kept, dy):
  g = _group(fold, scale, x)
  dy = fold.flat(dy).astype(g.v.dtype)
  scores, y, errors = fold.flat(kept[:3])
  reach = g.kind.reach(g.levels, g.rows, g.k)
  written = g.v if y is None else g.beta * errors
  states = _states(fold, kept.state, reach, times(reach.after, written))
  dinside = product('nij,niv->njv', scores, dy)

  def step(dS, x):
    reach, y, beta, dy, dwritten = x
    dend = product('nik,nkv->niv', reach.writes, dS)
    derror = dwritten + times(reach.after, dend)
    if y is not None:
      derror = solve_transposed(y, beta, derror)
    dread = _dread(reach, beta, dy, derror)
    dstart = times(reach.through, dS)
    dstart += product('nik,niv->nkv', reach.reads, dread)
    return dstart, (dS, derror)

  xs = fold.steps((reach, y, g.beta, dy, dinside))
  dS_NKV, found = _chunks(step, dS_NKV, xs, reverse=True)
  dends, derror = fold.flat(found)
  dv = times(g.beta, derror)
  dscores = [product('niv,njv->nij', dy, written)]
  if y is not None:
    dscores.append(-product('niv,njv->nij', dv, written))
  dread = _dread(reach, g.beta, dy, derror)
  drows, dk, inwards, outwards = g.kind.gradients(
    g.levels,
    g.rows,
    g.k,
    dscores,
    product('niv,nkv->nik', dread, states),
    product('niv,nkv->nik', times(reach.after, written), dends),
  )
  dlog_decay = None
  if g.levels is not None:
    dthrough = _dthrough(reach, dends, states)
    dlog_decay = decays.gradient(g.levels, inwards, outwards, dthrough)
  dk = dk if y is None else dk + drows[1]
  dbeta = None if y is None else jnp.sum(errors * derror, -1, keepdims=True)
  of_keys = fold.key_heads(scale * drows[0]), fold.key_heads(dk)
  return dS_NKV, (*of_keys, *fold.steps((dv, dlog_decay, dbeta)))


def _write(reach: Reach, S, written):
  """The state after a chunk."""
  added = product('nik,niv->nkv', reach.writes, written)
  return times(reach.through, S) + added


def _states(fold, S_NKV, reach, written):
  """[n, K, V]: the state before each chunk of a group."""

  def step(S, x):
    S = _write(x[0], S, x[1])
    return S, S

  xs = fold.steps((reach, written))
  _, after = _chunks(step, S_NKV, jax.tree.map(lambda x: x[:-1], xs))
  return jnp.concatenate([S_NKV, fold.flat(after)])


def _chunks(step, carry, xs, reverse=False):
  """Goes through the chunks of a group."""
  length = len(jax.tree.leaves(xs)[0])
  unroll = max(1, min(UNROLL, length))
  return jax.lax.scan(step, carry, xs, reverse=reverse, unroll=unroll)


def _dread(reach: Reach, beta, dy, derror):
  """Of what a chunk reads from the state."""
  rows = [dy]
  if beta is not None:
    rows.append(-beta * derror)
  return times(reach.before, jnp.concatenate(rows, axis=1))


def _dthrough(reach: Reach, dends, states):
  """[n, D]: of the log of the chunk's decay."""
  products = dends * states
  if reach.before is not None:
    return reach.through[:, 0] * products.sum((1, 2))[:, None]
  return reach.through[..., 0] * products.sum(2)
