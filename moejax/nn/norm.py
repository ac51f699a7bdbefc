"""Normalisation."""

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
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), -1, keepdims=True)
    normal = wide * jax.lax.rsqrt(mean_square + self.epsilon)
    return (normal * scale).astype(x.dtype)
