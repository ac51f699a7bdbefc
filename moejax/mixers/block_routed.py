"""Softmax attention to the blocks of keys that a query picks."""

from __future__ import annotations

import flax.linen as nn
import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.mixers.attention import Attention
from moejax.mixers.cache import Places
from moejax.nn import attend
from moejax.types import Context, Routed


class BlockRouted(Attention, kw_only=True):
  """Each query head of each token attends to k blocks of its document.

  One is the token's own block, up to the token; the others are those earlier
  ones whose mean key has the largest product with the query. One softmax runs
  over all of them; nothing goes through the choice to the gradient. Blocks
  that are not picked cost their mean and one product.
  Source: 2502.13189 sec. 2.2.
  Differs: a token that is decoded picks blocks as in training, so that pieces
  give what the whole gives, where the published model decodes with full
  attention; the keys of all blocks are read for it. Blocks are counted from
  the start of each document.

  Attributes:
    block_tokens: tokens of a block.
    k: blocks that a query attends to, its own included.
  """

  block_tokens: int
  k: int

  def _core(self):
    if self.window is not None:
      raise ValueError(
        f'window={self.window} and blocks are two ways to see less; set '
        'window to None.'
      )
    return BlockCore(self.block_tokens, self.k, name='core')

  def _core_flops(self, size: int, length: int) -> float:
    products, block = 0, self.block_tokens
    for i, start in enumerate(range(0, length, block)):
      tokens = min(block, length - start)
      own = tokens * (tokens + 1) / 2
      picked = tokens * block * min(self.k - 1, i)
      # Logits and values of what is seen, and the means to choose among.
      products += 2 * (own + picked) + (tokens * i if self.k > 1 else 0)
    return 2 * size * self.heads * products / length


class BlockCore(nn.Module):
  """What `Core` is, for the blocks that a query picks.

  Attributes:
    block_tokens: tokens of a block.
    k: blocks, the query's own included.
  """

  block_tokens: int
  k: int

  @nn.compact
  def __call__(
    self,
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    ctx: Context,
    places: Places | None = None,
  ) -> jax.Array:
    k, v = k_BSGK.astype(q_BTHK.dtype), v_BSGV.astype(q_BTHK.dtype)
    own = Places((), ctx.positions_BT, ctx.segments_BT)
    blocks = find_blocks(places or own, self.block_tokens)
    ids_BTHJ = _choose(q_BTHK, k, own, blocks, self.k - 1)
    if places is None:
      return _of_blocks(q_BTHK, k, v, own, blocks, ids_BTHJ)
    mask = _mask(own, places, blocks, ids_BTHJ)
    return attend(q_BTHK, k, v, mask)


@struct.dataclass
class Blocks:
  """The complete blocks of each row, M at most; only they can be picked.

  Attributes:
    places_BMC: int32, the places of their tokens.
    valid_BM: bool, whether there is such a block.
    segments_BM: int32, the document.
    index_BM: int32, the number of the block in its document.
    of_place_BS: int32, the block of each place, or M.
    size: C, tokens of a block (static).
  """

  places_BMC: jax.Array
  valid_BM: jax.Array
  segments_BM: jax.Array
  index_BM: jax.Array
  of_place_BS: jax.Array
  size: int = struct.field(pytree_node=False)


def find_blocks(places: Places, size: int) -> Blocks:
  """Documents stand in order, without gaps, so that blocks do too."""
  positions, segments = places.positions_BS, places.segments_BS
  length = positions.shape[1]
  most = length // size
  is_end = (positions % size == size - 1) & (segments > 0)

  def row(is_end, positions, segments):
    (end_M,) = jnp.nonzero(is_end, size=most, fill_value=length)
    places_MC = end_M[:, None] - jnp.arange(size)[::-1]
    start_M = jnp.minimum(places_MC[:, 0], length - 1)
    # The blocks that end before a place: the number of its own, if any.
    rank_S = jnp.cumsum(is_end) - is_end
    first_S = jnp.append(places_MC[:, 0], length)[jnp.minimum(rank_S, most)]
    inside_S = jnp.arange(length) >= first_S
    return Blocks(
      places_BMC=jnp.minimum(places_MC, length - 1),
      valid_BM=end_M < length,
      segments_BM=segments[start_M],
      index_BM=positions[start_M] // size,
      of_place_BS=jnp.where(inside_S, rank_S, most),
      size=size,
    )

  return jax.vmap(row)(is_end, positions, segments)


def _gather(x_BSGK, blocks):
  """[B, M, C, G, K]: the tokens of each block."""
  return jax.vmap(lambda x, i: x[i])(x_BSGK, blocks.places_BMC)


def _choose(q_BTHK, k_BSGK, own, blocks, count) -> jax.Array:
  """int32 [B, T, H, count]: earlier blocks of the document, M for none."""
  batch, length, heads, _ = q_BTHK.shape
  most = blocks.valid_BM.shape[1]
  count = min(count, most)
  if not count:
    return jnp.zeros((batch, length, heads, 0), jnp.int32)
  q, k = jax.lax.stop_gradient((q_BTHK, k_BSGK))
  means = _gather(k, blocks).astype(jnp.float32).mean(2)
  q = q.reshape(batch, length, means.shape[2], -1, q.shape[-1])
  scores = jnp.einsum('btgjk,bmgk->btgjm', q.astype(jnp.float32), means)
  index_BT1 = own.positions_BS[..., None] // blocks.size
  earlier = (
    blocks.valid_BM[:, None]
    & (blocks.segments_BM[:, None] == own.segments_BS[..., None])
    & (blocks.index_BM[:, None] < index_BT1)
  )
  scores = jnp.where(earlier[:, :, None, None], scores, -jnp.inf)
  best, ids = jax.lax.top_k(scores, count)
  ids = jnp.where(best > -jnp.inf, ids, most)
  return ids.reshape(batch, length, heads, count).astype(jnp.int32)


def _in_own_block(own, places, size):
  """bool [B, T, S]: same block of the same document, not later."""
  positions, others = own.positions_BS[:, :, None], places.positions_BS[:, None]
  same = own.segments_BS[:, :, None] == places.segments_BS[:, None]
  return same & (positions // size == others // size) & (positions >= others)


def _mask(own, places, blocks, ids_BTHJ):
  """bool [B, H, T, S]: what each head of each token sees."""
  most = blocks.valid_BM.shape[1]
  picked_BTHM = (ids_BTHJ[..., None] == jnp.arange(most)).any(-2)
  # The last column is for places of no complete block: never picked.
  picked = jnp.pad(picked_BTHM, ((0, 0),) * 3 + ((0, 1),))
  picked = jax.vmap(lambda p, i: p[..., i])(picked, blocks.of_place_BS)
  own_BTS = _in_own_block(own, places, blocks.size)
  return (picked | own_BTS[:, :, None]).swapaxes(1, 2)


def _of_blocks(q_BTHK, k_BSGK, v_BSGV, own, blocks, ids_BTHJ):
  """One softmax over the own block and the picked ones, [B, T, H, V].

  Queries are sorted by picked block: a block is to them what an expert's
  matrix is to tokens.
  """
  batch, length, heads, size = q_BTHK.shape
  picks = ids_BTHJ.shape[-1]
  q = q_BTHK.astype(jnp.float32) * size**-0.5
  near, near_values = _near(q, k_BSGK, v_BSGV, own, blocks.size)
  if not picks:
    return near_values(jax.nn.softmax(near)).astype(q_BTHK.dtype)
  keys, values = _gather(k_BSGK, blocks), _gather(v_BSGV, blocks)
  most, groups = keys.shape[1], keys.shape[3]
  num = batch * groups * most
  # A block of each key head of each row: [B G M, K, C] and [B G M, C, V].
  keys = keys.transpose(0, 3, 1, 4, 2).reshape(num, size, blocks.size)
  values = values.transpose(0, 3, 1, 2, 4).reshape(num, blocks.size, -1)
  group_H = jnp.arange(heads) // (heads // groups)
  row_BH = jnp.arange(batch)[:, None] * groups + group_H
  found = ids_BTHJ < most
  ids = jnp.where(found, row_BH[:, None, :, None] * most + ids_BTHJ, num)
  queries = Routed(
    q.reshape(-1, size),
    ids.reshape(-1, picks),
    found.reshape(-1, picks).astype(jnp.float32),
    num,
  )
  # In f32, like the logits of `attend`.
  far = queries.spread(queries.dot(keys.astype(jnp.float32)))
  far = far.reshape(batch, length, heads, picks, blocks.size)
  far = jnp.where(found[..., None], far, -jnp.inf)
  logits = jnp.concatenate(
    [near, far.reshape(*near.shape[:3], picks * blocks.size)], -1
  )
  near, far = jnp.split(jax.nn.softmax(logits), [near.shape[-1]], -1)
  far = far.reshape(-1, picks, blocks.size).astype(values.dtype)
  y = queries.combine(queries.gathered(far).dot(values))
  y = y.reshape(batch, length, heads, -1)
  return (near_values(near) + y).astype(q_BTHK.dtype)


def _near(q, k, v, own, size):
  """Logits of the own block [B, T, H, 2 C], and what multiplies its values.

  A block of the document lies in two neighbouring runs of `size` places.
  """
  batch, length, heads, _ = q.shape
  groups = k.shape[2]
  runs = -(-length // size)
  tail = runs * size - length

  def cut(x, fill=0):
    """[B, runs, C, ...]."""
    pad = ((0, 0), (0, tail)) + ((0, 0),) * (x.ndim - 2)
    x = jnp.pad(x, pad, constant_values=fill)
    return x.reshape(batch, runs, size, *x.shape[2:])

  def two(x, fill=0):
    """[B runs, 2 C, ...]: each run after the one before it."""
    x = cut(x)
    first = jnp.full_like(x[:, :1], fill)
    before = jnp.concatenate([first, x[:, :-1]], 1)
    return jnp.concatenate([before, x], 2).reshape(
      batch * runs, 2 * size, *x.shape[3:]
    )

  def flat(x):
    return cut(x).reshape(batch * runs, size, *x.shape[2:])

  mask = _in_own_block(
    Places((), flat(own.positions_BS), flat(own.segments_BS)),
    # No document is before the first run.
    Places((), two(own.positions_BS), two(own.segments_BS, fill=-1)),
    size,
  )
  q = flat(q).reshape(batch * runs, size, groups, -1, q.shape[-1])
  logits = jnp.einsum(
    'ncgjk,nsgk->ncgjs', q, two(k), preferred_element_type=jnp.float32
  )
  logits = jnp.where(mask[:, :, None, None], logits, -jnp.inf)
  whole = (batch, runs * size, heads, -1)
  logits = logits.reshape(whole)[:, :length]

  def values(p):
    p = flat(p).reshape(batch * runs, size, groups, -1, 2 * size)
    y = jnp.einsum(
      'ncgjs,nsgv->ncgjv',
      p.astype(v.dtype),
      two(v),
      preferred_element_type=jnp.float32,
    )
    return y.reshape(whole)[:, :length]

  return logits, values
