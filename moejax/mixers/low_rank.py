"""Logits of gates: x W, or x U W through few numbers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from moejax.nn import Projection

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
