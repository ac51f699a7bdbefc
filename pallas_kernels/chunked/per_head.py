"""Chunks with one decay for each head, or none: scores as one product.

All channels decay alike, so that a factor stands before the scores, and before
what is read from the state or written to it: queries and keys stay as they are.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from pallas_kernels.chunked.blocks import lower_blocks, product
from pallas_kernels.chunked.decays import between
from pallas_kernels.chunked.reach import Reach


def scores(levels, rows, k_nCK):
  """As in `per_channel`; `levels` is `None` if nothing decays."""
  n, C, _ = k_nCK.shape
  found = product('nik,njk->nij', jnp.concatenate(rows, axis=1), k_nCK)
  decay = _mask(C) if levels is None else between(levels)[:, None]
  found = found.reshape(n, len(rows), C, C) * decay
  return found[:, 0], lower_blocks(found[:, 1:]) if len(rows) == 2 else None


def reach(levels, rows, k_nCK) -> Reach:
  reads = jnp.concatenate(rows, axis=1)
  if levels is None:
    return Reach(reads, k_nCK, None, None, None)
  prefix, suffix = levels[-1][1:]
  before = jnp.concatenate([prefix] * len(rows), axis=1)
  return Reach(reads, k_nCK, before, suffix, prefix[:, -1:])


def gradients(levels, rows, k_nCK, dscores, dreads, dwrites):
  """As in `per_channel`, with [n, C, 1] or `None` for the decays."""
  n, C, K = k_nCK.shape
  r = len(rows)
  if levels is None:
    decay = np.stack([_mask(C), _mask(C, -1)])[:r]
  else:
    # The diagonal has no decay, and is added later; see `per_channel`.
    decay = between(levels)[:, None] * _mask(C, -1)
  dscores = jnp.stack(dscores, axis=1)
  weights = (dscores * decay).reshape(n, r * C, C)
  stacked = jnp.concatenate(rows, axis=1)
  drows = product('nij,njk->nik', weights, k_nCK) + dreads
  dk = product('nij,nik->njk', weights, stacked)
  if levels is None:
    return jnp.split(drows, r, axis=1), dk + dwrites, None, None
  inwards = jnp.sum(stacked * drows, axis=-1).reshape(n, r, C).sum(1)
  inwards -= jnp.sum(k_nCK * dk, axis=-1)
  outwards = jnp.sum(k_nCK * dwrites, axis=-1)
  drows = jnp.split(drows, r, axis=1)
  diagonal = jnp.diagonal(dscores[:, 0], axis1=1, axis2=2)[..., None]
  drows[0] += diagonal * k_nCK
  dk += diagonal * rows[0] + dwrites
  return drows, dk, inwards[..., None], outwards[..., None]


def _mask(C, diagonal=0):
  return np.tril(np.ones((C, C), np.float32), diagonal)
