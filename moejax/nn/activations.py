"""Element-wise nonlinearities, by name for the configs."""

import jax
import jax.numpy as jnp


def identity(x: jax.Array) -> jax.Array:
  """x itself."""
  return x


def silu(x: jax.Array) -> jax.Array:
  """x * sigmoid(x).  Source: 1702.03118."""
  return jax.nn.silu(x)


def sigmoid(x: jax.Array) -> jax.Array:
  """1 / (1 + exp(-x))."""
  return jax.nn.sigmoid(x)


def gelu(x: jax.Array) -> jax.Array:
  """x times the normal distribution function, by tanh.  Source: 1606.08415."""
  return jax.nn.gelu(x)


def relu_squared(x: jax.Array) -> jax.Array:
  """max(x, 0)^2.  Source: 2109.08668."""
  return jnp.square(jax.nn.relu(x))
