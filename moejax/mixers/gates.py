"""Gates of a linear mixer: what is written, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.nn import Projection, activations

AXES = ('heads', 'kv')


def logits(
  x_BTD: jax.Array, shape: tuple[int, ...], rank: int | None = None
) -> jax.Array:
  """x W, or x U W through `rank` numbers: f32 [B, T, *shape].

  Makes parameters of the module whose compact call this is part of.
  """
  inner = 'embed'
  if rank is not None:
    x_BTD = Projection((rank,), ('embed', None), name='down')(x_BTD)
    inner = None
  axes = (inner, *AXES[: len(shape)])
  return Projection(shape, axes, name='logits')(x_BTD).astype(jnp.float32)


def logits_flops(
  width: int, shape: tuple[int, ...], rank: int | None = None
) -> float:
  """Forward FLOPs per token."""
  if rank is None:
    return 2 * width * math.prod(shape)
  return 2 * rank * (width + math.prod(shape))


class Write(nn.Module):
  """maximum * sigmoid(x W): the write strength beta, f32 [B, T, *shape].

  Source: 2406.06484 sec. 2.2. With maximum 2, what is written can overshoot:
  the state's transition has negative eigenvalues, 2411.12537.

  Attributes:
    maximum: 1 or 2.
  """

  maximum: float = 1.0

  @nn.compact
  def __call__(self, x_BTD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return self.maximum * jax.nn.sigmoid(logits(x_BTD, shape))

  def flops(self, width: int, shape: tuple[int, ...]) -> float:
    """Forward FLOPs per token."""
    return logits_flops(width, shape)


class Output(nn.Module):
  """activation(x W) or activation(x U W), f32 [B, T, *shape].

  Attributes:
    activation: sigmoid or silu.
    rank: of U W; None for one matrix.
  """

  activation: Callable = activations.sigmoid
  rank: int | None = None

  @nn.compact
  def __call__(self, x_BTD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return self.activation(logits(x_BTD, shape, self.rank))

  def flops(self, width: int, shape: tuple[int, ...]) -> float:
    """Forward FLOPs per token."""
    return logits_flops(width, shape, self.rank)
