"""What attention keeps of the tokens that it has seen."""

from __future__ import annotations

import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.types import Context


@struct.dataclass
class Places:
  """Tokens to attend to.

  Attributes:
    kept: arrays [B, S, ...], such as keys and values.
    positions_BS, segments_BS: int32; segment 0 marks free and padded places.
  """

  kept: tuple[jax.Array, ...]
  positions_BS: jax.Array
  segments_BS: jax.Array


@struct.dataclass
class Cache(Places):
  """Places, and how many tokens were ever put into them.

  Attributes:
    length: int32.
  """

  length: jax.Array

  def extend(
    self, new: tuple[jax.Array, ...], ctx: Context, window: int | None = None
  ) -> tuple[Cache, Places]:
    """Puts the T tokens of the call in.

    Without a window the caller sees to it that they fit. With one, old tokens
    make room: the cache is a ring.

    Args:
      new: as `kept`, [B, T, ...].
      ctx: of the call.
      window: as given to `empty`.

    Returns:
      The new cache, and the places that the tokens of the call attend to.
    """
    new = Places(tuple(new), ctx.positions_BT, ctx.segments_BT)
    new = jax.tree.map(lambda a, b: a.astype(b.dtype), new, self._places())
    tokens = ctx.segments_BT.shape[1]
    if window is None or tokens == 1:
      cache = self._put(new, tokens)
      return cache, cache._places()
    # The first tokens of the call see what the last ones push out.
    seen = jax.tree.map(
      lambda *a: jnp.concatenate(a, axis=1), self._places(), new
    )
    return self._put(new, tokens), seen

  def _places(self) -> Places:
    return Places(self.kept, self.positions_BS, self.segments_BS)

  def _put(self, new: Places, tokens: int) -> Cache:
    room = self.segments_BS.shape[1]

    def put(old, new):
      if tokens == 1:
        start = (0, self.length % room) + (0,) * (old.ndim - 2)
        return jax.lax.dynamic_update_slice(old, new, start)
      last = min(tokens, room)
      place = (self.length + jnp.arange(tokens - last, tokens)) % room
      return old.at[:, place].set(new[:, -last:], unique_indices=True)

    places = jax.tree.map(put, self._places(), new)
    return Cache(
      places.kept,
      places.positions_BS,
      places.segments_BS,
      self.length + tokens,
    )


def empty(
  batch: int, length: int, sizes: tuple, dtype, window: int | None = None
) -> Cache:
  """A cache for sequences of up to `length` tokens.

  Args:
    batch: B.
    length: tokens that there will be.
    sizes: what is kept of a token: the axes of each array after [B, S].
    dtype: of what is kept.
    window: the tokens that attention sees; no more places are made.
  """
  shape = (batch, min(length, window or length))
  return Cache(
    kept=tuple(jnp.zeros((*shape, *size), dtype) for size in sizes),
    positions_BS=jnp.zeros(shape, jnp.int32),
    segments_BS=jnp.zeros(shape, jnp.int32),
    length=jnp.zeros((), jnp.int32),
  )
