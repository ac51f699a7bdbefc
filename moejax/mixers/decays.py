"""Decays of a linear mixer's state: `(x_BTD, shape) -> log decay`.

The log decay is f32 [B, T, *shape] and at most 0; `shape` is [G], one for
each value head, or [G, K], one for each channel of its keys.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.mixers.low_rank import AXES, logits, logits_flops

__all__ = ['Bounded', 'Lightning', 'LogSigmoid', 'Retention', 'Softplus']


def log_uniform(low: float, high: float):
  """Initialiser: the logarithm of a number uniform in [low, high]."""

  def init(key, shape, dtype=jnp.float32):
    return jnp.log(jax.random.uniform(key, shape, dtype, low, high))

  return init


def step_bias(key, shape, dtype=jnp.float32):
  """Initialiser: softplus of it is log-uniform between 0.001 and 0.1.

  Source: 2312.00752 sec. 3.6.
  """
  low, high = math.log(1e-3), math.log(1e-1)
  step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
  return step + jnp.log(-jnp.expm1(-step))


class Softplus(nn.Module):
  """-exp(A_log) softplus(f(x) + dt_bias), one A_log per head.

  Source: 2405.21060 sec. 7, 2412.06464 sec. 3.4 (per head); 2510.26692
  sec. 4 (per channel, low rank).

  Attributes:
    rank: of f, None for one matrix.
    rates: between which exp(A_log) starts, uniformly.
  """

  rank: int | None = None
  rates: tuple[float, float] = (1.0, 16.0)

  @nn.compact
  def __call__(self, x_BTD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    step = jax.nn.softplus(_biased(self, x_BTD, shape))
    return -_rate(self, log_uniform(*self.rates), shape) * step

  def flops(self, width: int, shape: tuple[int, ...]) -> float:
    """Forward FLOPs per token."""
    return logits_flops(width, shape, self.rank)


class Bounded(nn.Module):
  """lower_bound sigmoid(exp(A_log) (f(x) + dt_bias)), one A_log per head.

  A decay that no input can push below exp(lower_bound).
  Source: the safe gate of Kimi Delta Attention's public kernels.

  Attributes:
    rank: of f, None for one matrix.
    lower_bound: of the log decay.
  """

  rank: int | None = None
  lower_bound: float = -5.0

  @nn.compact
  def __call__(self, x_BTD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    steep = _rate(self, nn.initializers.zeros, shape)
    return self.lower_bound * jax.nn.sigmoid(
      steep * _biased(self, x_BTD, shape)
    )

  def flops(self, width: int, shape: tuple[int, ...]) -> float:
    """Forward FLOPs per token."""
    return logits_flops(width, shape, self.rank)


class LogSigmoid(nn.Module):
  """log sigmoid(x U W + bias) / temperature.  Source: 2312.06635 sec. 4.4.

  Attributes:
    rank: of U W.
    temperature: the larger, the longer the state remembers.
  """

  rank: int = 16
  temperature: float = 16.0

  @nn.compact
  def __call__(self, x_BTD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    init = nn.with_logical_partitioning(
      nn.initializers.zeros, AXES[: len(shape)]
    )
    bias = self.param('bias', init, shape, jnp.float32)
    biased = logits(x_BTD, shape, self.rank) + bias
    return jax.nn.log_sigmoid(biased) / self.temperature

  def flops(self, width: int, shape: tuple[int, ...]) -> float:
    """Forward FLOPs per token."""
    return logits_flops(width, shape, self.rank)


class Retention(nn.Module):
  """log(1 - 2^(-5 - h)) for head h.  Source: 2307.08621 sec. 2.3."""

  def __call__(self, x_BTD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    rates = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(shape[0]))))
    return _constant(rates, x_BTD, shape)

  def flops(self, width: int, shape: tuple[int, ...]) -> float:
    """Forward FLOPs per token."""
    del width, shape
    return 0


class Lightning(nn.Module):
  """-2^(-8 (h + 1) / G) (1 - depth) for head h.

  Source: the public code of 2501.08313, which adds 1e-5 to 1 - depth so that
  the last layer decays, too.

  Attributes:
    depth: the layer's place from 0 (the first) to 1 (the last).
  """

  depth: float = 0.0

  def __call__(self, x_BTD: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    slopes = 2.0 ** (-8.0 / shape[0] * jnp.arange(1, shape[0] + 1))
    return _constant(-slopes * (1 - self.depth + 1e-5), x_BTD, shape)

  def flops(self, width: int, shape: tuple[int, ...]) -> float:
    """Forward FLOPs per token."""
    del width, shape
    return 0


def _biased(module, x_BTD, shape):
  """f(x) + dt_bias, f32 [B, T, *shape]."""
  init = nn.with_logical_partitioning(step_bias, AXES[: len(shape)])
  bias = module.param('dt_bias', init, shape, jnp.float32)
  return logits(x_BTD, shape, module.rank) + bias


def _rate(module, init, shape):
  """exp(A_log): a number per head, against [..., *shape]."""
  init = nn.with_logical_partitioning(init, AXES[:1])
  a_log = module.param('A_log', init, shape[:1], jnp.float32)
  return jnp.exp(a_log).reshape(-1, *(1,) * (len(shape) - 1))


def _constant(per_head, x_BTD, shape):
  per_head = per_head.reshape(-1, *(1,) * (len(shape) - 1))
  return jnp.broadcast_to(per_head, (*x_BTD.shape[:2], *shape))
