"""Solves of the unit triangular systems of the delta rule.

The rows e that a chunk of C tokens writes are, with M strictly lower
triangular (scores of keys with keys) and B = diag(beta),

  e = r - M B e = (I + M B)^-1 r = (I - Y B) r,  Y = (I + M B)^-1 M.

The transposed system of the backward pass has (I + B M)^-1 = I - B Y, so that
one Y serves both. Nothing is divided by beta, which may be 0.
"""

from __future__ import annotations

import jax.numpy as jnp

from pallas_kernels.chunked.blocks import halves, merge, product


def resolvent(blocks, beta_nC1):
  """Y [n, C, C], from the blocks of M: {b: [n', b, b]}.

  Y of a block of 2b follows from those of its halves, Y0 and Y1: below the
  diagonal it is (I - Y1 B1) M (I - B0 Y0). No power of M is ever formed, which
  would grow without bound where keys are alike.
  """
  n, C, _ = beta_nC1.shape
  found = jnp.zeros((n * C, 1, 1), beta_nC1.dtype)
  for b, block in sorted(blocks.items()):
    y0, y1 = jnp.unstack(found.reshape(-1, 2, b, b), axis=1)
    beta0, beta1 = halves(beta_nC1, b)
    columns = block * jnp.swapaxes(beta0, 1, 2)
    block -= product('nij,njk->nik', columns, y0)
    block -= product('nij,njk->nik', y1, beta1 * block)
    found = merge(found, block)
  return found


def solve(y_nCC, beta_nC1, x_nCV):
  """(I + M B)^-1 x."""
  return x_nCV - product('nij,njv->niv', y_nCC, beta_nC1 * x_nCV)


def solve_transposed(y_nCC, beta_nC1, x_nCV):
  """((I + B M)^-1)^T x."""
  return x_nCV - product('nij,niv->njv', y_nCC, beta_nC1 * x_nCV)
