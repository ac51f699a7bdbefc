"""Forms for every platform: blocks of tokens, and sums over sorted slots."""

from __future__ import annotations

import jax
import jax.numpy as jnp

TOKENS = 64  # of a block: its rows are all that is made of the table
PAIRS = 256  # of a block of sorted pairs


def lookup(table_SD, ids_NK, weights_NKC):
  """As the reference, in blocks of tokens."""
  n, d = len(ids_NK), table_SD.shape[1]

  def block(args):
    ids, weights = args
    return (expand(weights, d) * rows_of(table_SD, ids)).sum(1)

  y = jax.lax.map(block, in_blocks(TOKENS, ids_NK, weights_NKC))
  return y.reshape(-1, d)[:n]


def products(table_SD, ids_NK, x_ND, *, parts):
  """As the reference, in blocks of tokens."""
  (n, k), e = ids_NK.shape, table_SD.shape[1] // parts

  def block(args):
    ids, x = args
    rows = rows_of(table_SD, ids).reshape(*ids.shape, e, parts)
    x = x.reshape(-1, e, parts).astype(jnp.float32)
    return jnp.einsum('nkec,nec->nkc', rows, x, precision='highest')

  a = jax.lax.map(block, in_blocks(TOKENS, ids_NK, x_ND))
  return a.reshape(-1, k, parts)[:n]


def gradient(total_SD, ids_NK, weights_NKC, dy_ND, *, fresh=False):
  """As the reference, but in the order of the slots: no two writes collide.

  A `fresh` total is zero: rows are written and not added, which takes XLA less
  memory.
  """
  slots = len(total_SD)

  def add(carry, block):
    total_SD, last = carry
    last, (slots_P, rows_PD) = _sums(last, block, weights_NKC, dy_ND, slots)
    # What goes nowhere goes to different places, so that none comes twice.
    place_P = slots + jnp.arange(slots_P.size)
    slots_P = jnp.where(slots_P < slots, slots_P, place_P)
    row = total_SD.at[slots_P]
    put = row.set if fresh else row.add
    return (put(rows_PD, mode='drop', unique_indices=True), last), None

  blocks, first = _sorted(ids_NK, weights_NKC, dy_ND, slots)
  return jax.lax.scan(add, (total_SD, first), blocks)[0][0]


def touched(ids_NK, weights_NKC, dy_ND, *, slots):
  """The rows of the gradient that are not zero, without the table's size.

  Returns:
    slots_R, int32, ascending where they are below `slots`, each of these once;
    any other means "none". rows_RD, f32. R is N * K, made up to whole blocks.
  """

  def step(last, block):
    return _sums(last, block, weights_NKC, dy_ND, slots)

  blocks, first = _sorted(ids_NK, weights_NKC, dy_ND, slots)
  slots_BP, rows_BPD = jax.lax.scan(step, first, blocks)[1]
  return slots_BP.reshape(-1), rows_BPD.reshape(-1, dy_ND.shape[1])


def _sorted(ids_NK, weights_NKC, dy_ND, slots):
  """Blocks of (slot, next slot, pair), and the sum before the first."""
  ids_R = ids_NK.reshape(-1).astype(jnp.int32)
  pair_R = jnp.arange(ids_R.size, dtype=jnp.int32)
  # Stable, so that the order of a sum is that of the tokens.
  ids_R, pair_R = jax.lax.sort((ids_R, pair_R), num_keys=1, is_stable=True)
  after = -ids_R.size % min(PAIRS, ids_R.size)
  ids_R = jnp.pad(ids_R, (0, after), constant_values=slots)
  next_R = jnp.append(ids_R[1:], jnp.int32(slots))
  pair_R = jnp.pad(pair_R, (0, after))
  size = min(PAIRS, ids_R.size)
  blocks = [a.reshape(-1, size) for a in (ids_R, next_R, pair_R)]
  # Made of the ids, so that it varies over the same devices in `shard_map`.
  none = jnp.zeros(dy_ND.shape[1], jnp.float32) + 0 * ids_R[0]
  return tuple(blocks), (0 * ids_R[0] - 1, none)


def _sums(last, block, weights_NKC, dy_ND, slots):
  """The sums that end in a block; `last` is the slot and sum left open."""
  slot_P, next_P, pair_P = block
  k = weights_NKC.shape[1]
  token_P = jax.lax.div(pair_P, jnp.int32(k))
  weights_PC = rows_of(weights_NKC.reshape(-1, weights_NKC.shape[2]), pair_P)
  rows_PD = expand(weights_PC, dy_ND.shape[1]) * rows_of(dy_ND, token_P)
  place_P = jnp.arange(slot_P.size)
  before_PP = place_P <= place_P[:, None]
  own_PP = (slot_P == slot_P[:, None]) & before_PP
  sums_PD = jnp.dot(own_PP.astype(jnp.float32), rows_PD, precision='highest')
  open_slot, open_D = last
  sums_PD += jnp.where((slot_P == open_slot)[:, None], open_D, 0)
  ended_P = slot_P != next_P
  found = jnp.where(ended_P, slot_P, slots), sums_PD
  return (slot_P[-1], sums_PD[-1]), found


def rows_of(table_SD, ids):
  """f32 rows, without a check of the ids."""
  return table_SD.at[ids].get(mode='promise_in_bounds').astype(jnp.float32)


def expand(weights_C, width):
  """[..., C] to [..., D]: each weight for all of its part of a row."""
  parts = weights_C.shape[-1]
  if parts == 1:
    return weights_C
  return jnp.tile(weights_C, width // parts)


def in_blocks(size, *arrays):
  """Arrays cut along their first axis; what is added has row 0, weight 0."""
  n = len(arrays[0])
  size = min(size, n)
  cut = (
    jnp.pad(a, ((0, -n % size), *((0, 0),) * (a.ndim - 1))) for a in arrays
  )
  return tuple(a.reshape(-1, size, *a.shape[1:]) for a in cut)
