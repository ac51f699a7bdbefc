"""Forms that suit XLA on CPU.

Nothing is sorted: a scatter is one loop there, and deterministic, while a sort
takes as long as all that it could save.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.table_lookup.xla import expand, in_blocks, rows_of

# The fastest of 1, 8 and 32 columns and of 16 and 64 tokens, for 32 rows of
# 192 numbers each.
COLUMNS = 8
TOKENS = 64


def lookup(table_SD, ids_NK, weights_NKC):
  """As the reference; no array of the rows of all tokens is made."""
  n, d = len(ids_NK), table_SD.shape[1]
  columns = in_blocks(COLUMNS, ids_NK.T, weights_NKC.swapaxes(0, 1))

  def add(y_ND, columns):
    # One loop over tokens, which reads some rows of each at once.
    for ids_N, weights_NC in zip(*columns, strict=True):
      y_ND += expand(weights_NC, d) * rows_of(table_SD, ids_N)
    return y_ND, None

  # Made of the ids, so that it varies over the same devices.
  zeros = jnp.zeros((n, d), jnp.float32) + 0 * ids_NK[0, 0]
  return jax.lax.scan(add, zeros, columns)[0]


def gradient(ids_NK, weights_NKC, dy_ND, *, slots):
  """As the reference, in blocks of tokens."""
  d = dy_ND.shape[1]

  def add(total_SD, block):
    ids, weights, dy = block
    rows = expand(weights, d) * dy[:, None].astype(jnp.float32)
    return total_SD.at[ids].add(rows, mode='promise_in_bounds'), None

  zeros = jnp.zeros((slots, d), jnp.float32) + 0 * ids_NK[0, 0]
  blocks = in_blocks(TOKENS, ids_NK, weights_NKC, dy_ND)
  return jax.lax.scan(add, zeros, blocks)[0]
