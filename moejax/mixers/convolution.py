"""Short causal convolution: one filter per channel, within documents."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.nn import activations
from moejax.types import Context


class ShortConvolution(nn.Module):
  """activation(sum_i kernel_i x_(t + 1 + i - W) + bias) for each channel.

  Tokens of an earlier document count as zeros. The filters start uniform
  within W^-1/2, as those of the published models do.

  Attributes:
    size: W, the tokens seen.
    bias: whether there is one.
    activation: of the sum.
  """

  size: int = 4
  bias: bool = False
  activation: Callable = activations.silu

  @nn.compact
  def __call__(
    self, x_BTHK: jax.Array, ctx: Context, recent: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Convolves; `recent` are the W - 1 inputs before these.

    Returns:
      y_BTHK, and the last W - 1 inputs, [B, W - 1, H, K] (None if `recent`
      was). Padding at the end of a row is not among them; that at the start
      may be, where no token of its document sees it.
    """
    channels = x_BTHK.shape[2:]
    x_BTC = x_BTHK.reshape(*x_BTHK.shape[:2], -1)
    kernel_WC = self._parameter('kernel', (self.size, *channels))
    bias_C = self._parameter('bias', channels)[0] if self.bias else None
    if recent is None:
      x_BSC = jnp.pad(x_BTC, ((0, 0), (self.size - 1, 0), (0, 0)))
    else:
      before = recent.reshape(*recent.shape[:2], -1).astype(x_BTC.dtype)
      x_BSC = jnp.concatenate([before, x_BTC], 1)
    y_BTC = convolve(
      x_BSC, kernel_WC, bias_C, ctx.positions_BT, self.activation
    )
    if recent is not None:
      kept = _last(x_BSC, ctx.segments_BT, self.size - 1)
      recent = kept.astype(recent.dtype).reshape(recent.shape)
    return y_BTC.reshape(x_BTHK.shape), recent

  def _parameter(self, name, shape):
    """f32 [..., C]: one number for each tap and channel."""
    bound = self.size**-0.5

    def init(key, shape, dtype):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    axes = (None, 'heads', 'kv')[-len(shape) :]
    init = nn.with_logical_partitioning(init, axes)
    value = self.param(name, init, shape, jnp.float32)
    return value.reshape(-1, shape[-2] * shape[-1])


def _last(x_BSC, segments_BT, count):
  """The last `count` inputs that are not padding behind a row's tokens."""
  place = jnp.arange(1, segments_BT.shape[1] + 1)
  end_B = jnp.where(segments_BT > 0, place, 0).max(1)
  index = end_B[:, None] + jnp.arange(count)
  return jnp.take_along_axis(x_BSC, index[..., None], axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def convolve(
  x_BSC: jax.Array,
  kernel_WC: jax.Array,
  bias_C: jax.Array | None,
  positions_BT: jax.Array,
  activation: Callable,
) -> jax.Array:
  """The convolution as a function; its gradient keeps nothing but x.

  Args:
    x_BSC: S = W - 1 + T inputs, any float dtype.
    kernel_WC: f32; the last tap is the token's own.
    bias_C: f32 or None.
    positions_BT: int32 within documents; a tap reaches back no further.
    activation: of the sum, in f32.

  Returns:
    [B, T, C] in x's dtype.
  """
  sums_BTC = _sums(x_BSC, kernel_WC, bias_C, positions_BT)
  return activation(sums_BTC).astype(x_BSC.dtype)


def _taps(x_BSC, kernel_WC, positions_BT):
  """(tap, what it sees [B, T, C] f32, bool [B, T, 1]: whether it may)."""
  size, length = kernel_WC.shape[0], positions_BT.shape[1]
  for tap in range(size):
    seen = (positions_BT >= size - 1 - tap)[..., None]
    yield tap, x_BSC[:, tap : tap + length].astype(jnp.float32), seen


def _sums(x_BSC, kernel_WC, bias_C, positions_BT):
  sums = 0.0 if bias_C is None else bias_C
  for tap, x, seen in _taps(x_BSC, kernel_WC, positions_BT):
    sums = sums + jnp.where(seen, x, 0) * kernel_WC[tap]
  return sums


def _forward(x_BSC, kernel_WC, bias_C, positions_BT, activation):
  y = convolve(x_BSC, kernel_WC, bias_C, positions_BT, activation)
  return y, (x_BSC, kernel_WC, bias_C, positions_BT)


def _backward(activation, saved, dy):
  x_BSC, kernel_WC, bias_C, positions_BT = saved
  _, pull = jax.vjp(activation, _sums(*saved))
  (dsums,) = pull(dy.astype(jnp.float32))
  size = kernel_WC.shape[0]
  dx, dkernel = 0.0, []
  for tap, x, seen in _taps(x_BSC, kernel_WC, positions_BT):
    shared = jnp.where(seen, dsums, 0)
    dkernel.append((shared * x).sum((0, 1)))
    around = ((0, 0), (tap, size - 1 - tap), (0, 0))
    dx = dx + jnp.pad(shared * kernel_WC[tap], around)
  dbias = None if bias_C is None else dsums.sum((0, 1))
  return dx.astype(x_BSC.dtype), jnp.stack(dkernel), dbias, None


convolve.defvjp(_forward, _backward)
