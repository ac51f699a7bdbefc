"""Decays within a chunk, and scores under them, inside a TPU kernel.

The score of row i and column j < i is w_i <x_i, k_j> under the product of the
decays of the steps j < t <= i. Log decays are only ever summed over steps, by
0/1 matrices, so that no exponent is above 0 and -1e30 forgets exactly; the
gradients are sums over the same steps, and nothing in them cancels.

Three kinds share one seam: none, per head ([1, C]), per channel ([C, K]).

  prefix, suffix   decays of the steps up to a token, and after it
  last             decay of the whole chunk
  scores           by level of halving (`tpu_masks`), zero elsewhere
  pull             from gradients of scores those of rows, columns, log decays
  pull_ends        from gradients of the other decays those of log decays, where
                   there are any

Source: arXiv 2312.06635 section 4.3 (secondary chunking).
Differs: blocks are halved down to one token and meet at the seam between
halves, in place of two levels with pairwise sums in the lower.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from pallas_kernels.chunked import tpu_masks
from pallas_kernels.chunked.tpu_products import Products

SUBLANES = 8


def of(log_decay, chunk: int, products: Products):
  """The decay of a chunk from `None`, [1, C] or [C, K], f32."""
  if log_decay is None:
    return NoDecay(chunk, products)
  if log_decay.shape[0] == 1:
    return HeadDecay(log_decay, products)
  return ChannelDecay(log_decay, products)


def read(products: Products, refs):
  """The decay of the chunk that a kernel works on."""
  log = refs.log_decay[...] if hasattr(refs, 'log_decay') else None
  return of(log, refs.k.shape[0], products)


class NoDecay:
  """Nothing is forgotten: scores are plain products."""

  prefix = suffix = last = 1.0

  def __init__(self, chunk, products):
    self.products = products
    self.i, self.t = tpu_masks.row_column(chunk)

  @functools.cached_property
  def decay_CC(self):
    """From each column to each row after it, zero elsewhere."""
    return (self.i > self.t).astype(jnp.float32)

  def scores(self, rows, weights, k_CK):
    """Yields b and the scores of each of `rows` that meet at its level."""
    found = [
      raw * w * self.decay_CC
      for raw, w in zip(self._raw(rows, k_CK), weights, strict=True)
    ]
    chunk = k_CK.shape[0]
    for b in tpu_masks.levels(chunk):
      own = tpu_masks.meets(chunk, b)
      yield b, [jnp.where(own, s, 0) for s in found]

  def pull(self, rows, weights, k_CK, dscores):
    """Gradients of w x for each of `rows`, of k, and of the log decays.

    Args:
      dscores: of each of `rows`; what is not below the diagonal does not count.
    """
    under = [d * self.decay_CC for d in dscores]
    drows = apart(self.products.nn(jnp.concatenate(under), k_CK), len(under))
    weighed = [d * w for d, w in zip(under, weights, strict=True)]
    dk_CK = self.products.tn(jnp.concatenate(weighed), jnp.concatenate(rows))
    return drows, dk_CK, self._pull_log(rows, k_CK, weighed)

  def _pull_log(self, rows, k_CK, weighed):
    return None

  def _raw(self, rows, k_CK):
    return apart(self.products.nt(jnp.concatenate(rows), k_CK), len(rows))


class HeadDecay(NoDecay):
  """One decay for all channels: a matrix of it masks the scores."""

  def __init__(self, log_1C, products):
    super().__init__(log_1C.shape[1], products)
    self.log_1C = log_1C

  @functools.cached_property
  def decay_CC(self):
    # Element (i, j) is the sum over the rows t <= i of what is kept: t > j.
    kept = jnp.where(self.i > self.t, tpu_masks.column(self.log_1C), 0)
    sums = self.products.sums(self.t <= self.i, kept)
    return jnp.where(self.i > self.t, jnp.exp(sums), 0)

  @functools.cached_property
  def prefix(self):
    return jnp.exp(_sum(self.t <= self.i, self.log_1C, 1))

  @functools.cached_property
  def suffix(self):
    return jnp.exp(_sum(self.t > self.i, self.log_1C, 1))

  @property
  def last(self):
    return self.prefix[-1:]

  def pull_ends(self, dprefix_CK, dsuffix_CK, dlast_1K):
    """Gradient of the log decays; each argument is a decay times its own."""
    dprefix_C1 = dprefix_CK.sum(1, keepdims=True)
    dsuffix_C1 = dsuffix_CK.sum(1, keepdims=True)
    return (
      _sum(self.t <= self.i, dprefix_C1, 0)
      + _sum(self.t > self.i, dsuffix_C1, 0)
      + dlast_1K.sum(1, keepdims=True)
    )

  def _pull_log(self, rows, k_CK, weighed):
    each = [
      raw * d for raw, d in zip(self._raw(rows, k_CK), weighed, strict=True)
    ]
    # Over rows i >= t by the product, then over columns j < t.
    over_rows = self.products.sums(self.t >= self.i, sum(each))
    return tpu_masks.row(_sum(self.i > self.t, over_rows, 1))


class ChannelDecay:
  """A decay for each channel: rows and columns are decayed to their seam."""

  def __init__(self, log_CK, products):
    self.products, self.chunk = products, log_CK.shape[0]
    self.log_CK = log_CK
    self.i, self.t = tpu_masks.row_column(self.chunk)
    self._to_seam = {}

  @functools.cached_property
  def prefix(self):
    return jnp.exp(self.products.sums(self.t <= self.i, self.log_CK))

  @functools.cached_property
  def suffix(self):
    return jnp.exp(self.products.sums(self.t > self.i, self.log_CK))

  @property
  def last(self):
    return self.prefix[-1:]

  def scores(self, rows, weights, k_CK):
    for b in tpu_masks.levels(self.chunk):
      lefts, right = self._meeting(b, rows, weights, k_CK)[1:]
      found = apart(self.products.nt(jnp.concatenate(lefts), right), len(rows))
      own = tpu_masks.meets(self.chunk, b)
      yield b, [jnp.where(own, _spread(s, self.chunk, b), 0) for s in found]

  def pull(self, rows, weights, k_CK, dscores):
    drows = [jnp.zeros_like(self.log_CK) for _ in rows]
    dk_CK, dlog_CK = (jnp.zeros_like(self.log_CK) for _ in range(2))
    for b in tpu_masks.levels(self.chunk):
      decay_CK, lefts, right = self._meeting(b, rows, weights, k_CK)
      own = tpu_masks.meets(self.chunk, b)
      d = jnp.concatenate([_second(jnp.where(own, d, 0), b) for d in dscores])
      dlefts = apart(self.products.nn(d, right), len(rows))
      dright = decay_CK * self.products.tn(d, jnp.concatenate(lefts))
      dlog = k_CK.astype(jnp.float32) * dright
      for n, (x, w) in enumerate(zip(rows, weights, strict=True)):
        drow = decay_CK * _spread(dlefts[n], self.chunk, b)
        dlog += x.astype(jnp.float32) * w * drow
        drows[n] += drow
      dk_CK += dright
      seam = tpu_masks.to_seam(self.chunk, b, transposed=True)
      dlog_CK += self.products.sums(seam, dlog)
    return drows, dk_CK, dlog_CK

  def pull_ends(self, dprefix_CK, dsuffix_CK, dlast_1K):
    return (
      self.products.sums(self.t >= self.i, dprefix_CK)
      + self.products.sums(self.t < self.i, dsuffix_CK)
      + dlast_1K
    )

  def _meeting(self, b, rows, weights, k_CK):
    """Decays to the seam, and what meets there: rows, weighed, and columns."""
    if b not in self._to_seam:
      seam = tpu_masks.to_seam(self.chunk, b)
      self._to_seam[b] = jnp.exp(self.products.sums(seam, self.log_CK))
    decay_CK = self._to_seam[b]
    lefts = [
      _second(x.astype(jnp.float32) * w * decay_CK, b)
      for x, w in zip(rows, weights, strict=True)
    ]
    first = ~tpu_masks.is_second(self.chunk, b)
    right = jnp.where(first, k_CK.astype(jnp.float32) * decay_CK, 0)
    return decay_CK, lefts, right


def _second(x, b):
  """The rows of second halves, where they are whole registers; else all."""
  if b % SUBLANES:
    return x
  return jnp.concatenate([x[a : a + b] for a in range(b, x.shape[0], 2 * b)])


def _spread(x, chunk, b):
  """Undoes `_second`; other rows are 0."""
  if b % SUBLANES:
    return x
  gap = jnp.zeros((b, x.shape[1]), x.dtype)
  blocks = [x[a : a + b] for a in range(0, chunk // 2, b)]
  return jnp.concatenate([y for block in blocks for y in (gap, block)])


def apart(x, count):
  """`count` equal blocks of rows."""
  size = x.shape[0] // count
  return [x[n * size : (n + 1) * size] for n in range(count)]


def _sum(where, x, axis):
  return jnp.where(where, x, 0).sum(axis, keepdims=True)
