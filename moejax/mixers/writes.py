"""Write strengths of a linear mixer: `(x_BTD, shape) -> beta`, f32."""

from __future__ import annotations

import flax.linen as nn
import jax

from moejax.mixers.low_rank import logits, logits_flops

__all__ = ['Sigmoid']


class Sigmoid(nn.Module):
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
