"""The core that softmax mixers share: what a token sees, and the softmax."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
from jax import lax

from moejax import sharding
from moejax.mixers.cache import Places
from moejax.nn import attend
from moejax.sharding import HEADS, TOKENS
from moejax.types import Context
from pallas_kernels.attention.api import attention
from pallas_kernels.attention.masked import visible


class Core(nn.Module):
  """Softmax over the tokens that a token sees; no parameters.

  These are itself and those before it in its document, within the window.

  Attributes:
    window: tokens seen, None for all of the document.
    scale: of the logits, None for K^-1/2.
  """

  window: int | None = None
  scale: float | None = None

  @nn.compact
  def __call__(
    self,
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGV: jax.Array,
    ctx: Context,
    places: Places | None = None,
  ) -> jax.Array:
    """[B, T, H, V].

    Args:
      q_BTHK: queries of the tokens of the call.
      k_BSGK: keys; G divides H.
      v_BSGV: values.
      ctx: of the call.
      places: where keys and values stand; None for the tokens of the call.
    """
    k, v = k_BSGK.astype(q_BTHK.dtype), v_BSGV.astype(q_BTHK.dtype)
    own = ctx.positions_BT, ctx.segments_BT
    if places is None:
      # A kernel runs on a device's own rows and heads.
      f = functools.partial(_own, window=self.window, scale=self.scale)
      args, axes = (q_BTHK, k, v, *own), (HEADS, HEADS, HEADS, TOKENS, TOKENS)
      return sharding.by_device(f, args, axes, HEADS)
    others = places.positions_BS, places.segments_BS
    mask = visible(*own, *others, window=self.window)
    return attend(q_BTHK, k, v, mask, scale=self.scale)


def _own(axis, q, k, v, *own, window, scale):
  """What the tokens of a device get from all of their rows."""
  if axis is None:
    return attention(q, k, v, *own, window=window, scale=scale)
  k, v, *others = (
    lax.all_gather(a, axis, axis=1, tiled=True) for a in (k, v, *own)
  )
  mask = visible(*own, *others, window=window)
  return attend(q, k, v, mask, scale=scale)


def mean_seen(length: int, window: int | None = None) -> float:
  """Tokens that a token of a sequence sees on average, itself included."""
  window = min(length, window or length)
  # The first tokens of a sequence see less than the window.
  return window * (1 - (window - 1) / (2 * length))
