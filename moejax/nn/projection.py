"""Linear maps with named axes."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import sharding


def matrix_init(axes: tuple[str | None, ...], in_axes=(0,), batch_axes=()):
  """Truncated normal of variance 1 / fan-in, boxed with logical `axes`.

  Args:
    axes: logical name of each axis of the parameter.
    in_axes: the axes that are summed over; they make the fan-in.
    batch_axes: axes over independent matrices, such as experts.
  """
  out_axes = [i for i in range(len(axes)) if i not in (*in_axes, *batch_axes)]
  init = nn.initializers.variance_scaling(
    1.0,
    'fan_in',
    'truncated_normal',
    in_axis=in_axes,
    out_axis=out_axes,
    batch_axis=batch_axes,
  )
  return nn.with_logical_partitioning(init, axes)


class Projection(nn.Module):
  """Contracts the last axes of x with a kernel; no bias.

  The kernel is kept in f32 and used in x's dtype.

  Attributes:
    features: sizes of the axes that come out.
    axes: logical names of the kernel's axes, summed ones first.
  """

  features: tuple[int, ...]
  axes: tuple[str, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    summed = len(self.axes) - len(self.features)
    shape = (*x.shape[-summed:], *self.features)
    init = matrix_init(self.axes, in_axes=tuple(range(summed)))
    kernel = self.param('kernel', init, shape, jnp.float32)
    return contract(x, kernel, summed)


def contract(x: jax.Array, kernel: jax.Array, summed: int = 1) -> jax.Array:
  """Sums over the last `summed` axes of x and the first of the kernel.

  In the dtype of x.
  """
  if x.ndim - summed > 1 and sharding.cuts('time'):
    # Merged into one axis, rows and tokens would have to be gathered.
    return jnp.tensordot(x, kernel.astype(x.dtype), summed)
  # As plain matrices: XLA:CPU takes half as long again for the gradient of
  # a product with more axes.
  batch, size = x.shape[: x.ndim - summed], math.prod(kernel.shape[:summed])
  y = x.reshape(-1, size) @ kernel.astype(x.dtype).reshape(size, -1)
  return y.reshape(*batch, *kernel.shape[summed:])


def expert_matrix(
  module: nn.Module, name: str, axes: tuple[str, str], shape: tuple[int, ...]
) -> jax.Array:
  """A parameter [E, in, out] of `module`: one f32 matrix per expert.

  Args:
    module: the owner, inside its compact call.
    name: of the parameter.
    axes: logical names of the input and output axes.
    shape: [E, in, out].
  """
  # A single expert is a dense layer: its axis is not for the expert mesh.
  first = 'expert' if shape[0] > 1 else None
  init = matrix_init((first, *axes), in_axes=(1,), batch_axes=(0,))
  return module.param(name, init, shape, jnp.float32)
