"""Normalisation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


class RmsNorm(nn.Module):
  """x / rms(x) * scale over the last axis, in f32, returned in x's dtype.

  Source: 1910.07467 eq. 4.

  Attributes:
    axis: logical name of the normalised axis.
    epsilon: added to the mean square.
  """

  axis: str | None = 'embed'
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
    return rms_norm(x, scale, self.epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
  """The norm as a function; its gradient keeps x and one number per row.

  Args:
    x: [..., D], any float dtype.
    scale: f32 [D].
    epsilon: added to the mean square.
  """
  return _forward(x, scale, epsilon)[0]


def _forward(x, scale, epsilon):
  wide = x.astype(jnp.float32)
  mean_square = jnp.mean(jnp.square(wide), -1, keepdims=True)
  inverse = jax.lax.rsqrt(mean_square + epsilon)
  return (wide * inverse * scale).astype(x.dtype), (x, inverse, scale)


def _backward(epsilon, saved, dy):
  del epsilon
  x, inverse, scale = saved
  normal, dy = x.astype(jnp.float32) * inverse, dy.astype(jnp.float32)
  dnormal = dy * scale
  # The mean square moves with x: take out the part along the row itself.
  along = jnp.mean(dnormal * normal, -1, keepdims=True)
  dx = inverse * (dnormal - normal * along)
  dscale = jnp.sum(dy * normal, axis=tuple(range(x.ndim - 1)))
  return dx.astype(x.dtype), dscale


rms_norm.defvjp(_forward, _backward)
