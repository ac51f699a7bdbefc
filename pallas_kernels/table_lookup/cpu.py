"""Forms that suit XLA on CPU.

No rows are put in order: a scatter is one loop there, and deterministic, while
a sort takes as long as all that it could save.
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


def gradient(total_SD, ids_NK, weights_NKC, dy_ND):
  """As the reference, in blocks of tokens."""
  d = dy_ND.shape[1]

  def add(total_SD, block):
    ids, weights, dy = block
    rows = expand(weights, d) * dy[:, None].astype(jnp.float32)
    return total_SD.at[ids].add(rows, mode='promise_in_bounds'), None

  blocks = in_blocks(TOKENS, ids_NK, weights_NKC, dy_ND)
  return jax.lax.scan(add, total_SD, blocks)[0]


def touched(ids_NK, weights_NKC, dy_ND, *, slots):
  """As `xla.touched`; the ids alone are sorted, for their places among R."""
  ids_R = ids_NK.reshape(-1).astype(jnp.int32)
  pair_R = jnp.arange(ids_R.size, dtype=jnp.int32)
  sorted_R, pair_R = jax.lax.sort((ids_R, pair_R), num_keys=1)
  new_R = jnp.diff(sorted_R, prepend=-1) != 0
  place_R = jnp.cumsum(new_R, dtype=jnp.int32) - 1
  slots_R = jnp.full_like(ids_R, slots).at[place_R].set(sorted_R)
  place_NK = jnp.zeros_like(ids_R).at[pair_R].set(place_R).reshape(ids_NK.shape)
  # Made of the ids, so that it varies over the same devices in `shard_map`.
  none_RD = jnp.zeros((ids_R.size, dy_ND.shape[1]), jnp.float32) + 0 * ids_R[0]
  return slots_R, gradient(none_RD, place_NK, weights_NKC, dy_ND)
