"""Chunks with a decay for each channel: scores anchored in a tree.

A score is a sum over channels of q_i k_j times the decay from j to i. For each
b, rows of the later half of a block of 2b tokens are decayed from the middle
of the block, columns of the earlier half to it, and one product gives their
scores. Every pair of tokens meets at one b, with factors of at most 1 on both
sides, whatever the decays.
"""

from __future__ import annotations

import jax.numpy as jnp

from pallas_kernels.chunked.blocks import (
  halves,
  join,
  lower_blocks,
  merge,
  product,
  product_over_rows,
)
from pallas_kernels.chunked.reach import Reach


def scores(levels, rows, k_nCK):
  """Scores of rows with the keys of the same chunk.

  Args:
    levels: of `decays.levels`.
    rows: (q_nCK,), or (q_nCK, k_nCK).
    k_nCK: keys.

  Returns:
    of the queries, [n, C, C], with the diagonal; and of the keys as rows, the
    blocks of the strictly lower triangle, or `None`.
  """
  found = jnp.sum(rows[0] * k_nCK, axis=-1).reshape(-1, 1, 1)
  blocks = {}
  for level in levels[:-1]:
    b = level.b
    later, earlier = _anchored(level, rows, k_nCK)
    score = product('nik,njk->nij', later, earlier)
    found = merge(found, score[:, :b])
    blocks[b] = score[:, b:]
  return found, blocks if len(rows) == 2 else None


def reach(levels, rows, k_nCK) -> Reach:
  prefix, suffix = levels[-1][1:]
  return Reach(
    jnp.concatenate([prefix * x for x in rows], axis=1),
    suffix * k_nCK,
    before=None,
    after=None,
    through=jnp.swapaxes(prefix[:, -1:], 1, 2),
  )


def gradients(levels, rows, k_nCK, dscores, dreads, dwrites):
  """Gradients of rows, keys and decays.

  Args:
    levels, rows, k_nCK: as before.
    dscores: of the scores of each of `rows`, each [n, C, C]; what lies above
      the diagonal is not read.
    dreads, dwrites: as in `Reach`.

  Returns:
    of each of `rows` [n, C, K]; of the keys as columns [n, C, K]; and the
    terms `inwards` and `outwards` of `decays.gradient`.
  """
  shape, r = k_nCK.shape, len(rows)
  blocks = lower_blocks(jnp.stack(dscores, axis=1))
  drows, dk = [jnp.zeros(shape, k_nCK.dtype)] * r, jnp.zeros_like(k_nCK)
  for level in levels[:-1]:
    b = level.b
    later, earlier = _anchored(level, rows, k_nCK)
    prefix, suffix = halves(level.prefix, b)[1], halves(level.suffix, b)[0]
    dlater = product('nij,njk->nik', blocks[b], earlier)
    dearlier = suffix * product_over_rows(blocks[b], later)
    for i in range(r):
      own = prefix * dlater[:, i * b : (i + 1) * b]
      drows[i] = _add_halves(drows[i], b, later=own)
    dk = _add_halves(dk, b, earlier=dearlier)
  prefix, suffix = levels[-1][1:]
  drows = [
    drow + prefix * dread
    for drow, dread in zip(drows, jnp.split(dreads, r, axis=1), strict=True)
  ]
  inwards = sum(x * dx for x, dx in zip(rows, drows, strict=True)) - k_nCK * dk
  dwrites = suffix * dwrites
  # The diagonal has no decay: after the sums that are sensitive to it, in
  # which it would cancel but for its rounding.
  diagonal = jnp.diagonal(dscores[0], axis1=1, axis2=2)[..., None]
  drows[0] += diagonal * k_nCK
  dk += diagonal * rows[0] + dwrites
  return drows, dk, inwards, k_nCK * dwrites


def _anchored(level, rows, k_nCK):
  """Rows of later halves on each other, and keys of earlier halves, decayed."""
  prefix = halves(level.prefix, level.b)[1]
  suffix = halves(level.suffix, level.b)[0]
  later = [prefix * halves(x, level.b)[1] for x in rows]
  return jnp.concatenate(later, axis=1), suffix * halves(k_nCK, level.b)[0]


def _add_halves(x_nCK, b, earlier=0.0, later=0.0):
  x0, x1 = halves(x_nCK, b)
  return join(x0 + earlier, x1 + later, x_nCK.shape)
