"""The core that softmax mixers share: what a token sees, and the softmax."""

from __future__ import annotations

import flax.linen as nn
import jax

from moejax.mixers.cache import Places
from moejax.nn import attend
from moejax.types import Context


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
    if places is None:
      places = Places((), ctx.positions_BT, ctx.segments_BT)
    k, v = k_BSGK.astype(q_BTHK.dtype), v_BSGV.astype(q_BTHK.dtype)
    mask = seen(ctx, places, self.window)
    return attend(q_BTHK, k, v, mask, scale=self.scale)


def seen(ctx: Context, places: Places, window: int | None) -> jax.Array:
  """bool [B, T, S]: same document, not later, within the window."""
  behind = ctx.positions_BT[:, :, None] - places.positions_BS[:, None, :]
  mask = behind >= 0
  if window is not None:
    mask &= behind < window
  # Padding (segment 0) sees padding: a row without any key would be nan.
  return mask & (ctx.segments_BT[:, :, None] == places.segments_BS[:, None, :])


def mean_seen(length: int, window: int | None = None) -> float:
  """Tokens that a token of a sequence sees on average; itself counts half."""
  window = min(length, window or length)
  # The first tokens of a sequence see less than the window.
  return window * (1 - window / (2 * length))
