"""The definitions.

C is the number of interleaved parts of a row that have weights of their own:
number d of a row belongs to part d % C. So a slice of all rows, such as one
device may hold, has its share of each part.
"""

import jax.numpy as jnp


def lookup(table_SD, ids_NK, weights_NKC):
  """f32 [N, D]: the weighted sum of the rows that each token names."""
  rows = _parts(table_SD[ids_NK], weights_NKC.shape[-1])
  return jnp.einsum('nkec,nkc->nec', rows, weights_NKC).reshape(len(ids_NK), -1)


def products(table_SD, ids_NK, x_ND, *, parts):
  """f32 [N, K, C]: each row that a token names times the token's own."""
  rows, x = _parts(table_SD[ids_NK], parts), _parts(x_ND, parts)
  return jnp.einsum('nkec,nec->nkc', rows, x.astype(jnp.float32))


def gradient(total_SD, ids_NK, weights_NKC, dy_ND):
  """f32 [S, D]: total_SD, and for each row weight times vector of who names it.

  The sum is the table's gradient of both others.
  """
  dy = _parts(dy_ND, weights_NKC.shape[-1]).astype(jnp.float32)
  rows = jnp.einsum('nkc,nec->nkec', weights_NKC, dy)
  return total_SD.at[ids_NK].add(rows.reshape(*ids_NK.shape, -1))


def _parts(a, parts):
  return a.reshape(*a.shape[:-1], -1, parts).astype(jnp.float32)
