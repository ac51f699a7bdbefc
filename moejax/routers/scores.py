"""Scores: how well each expert fits each token, `x_ND -> logits_NE`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.nn import matrix_init


class Linear(nn.Module):
  """x W in f32, whatever the dtype of x.  Source: 1701.06538 eq. 4.

  Attributes:
    num_experts: E.
  """

  num_experts: int

  @nn.compact
  def __call__(self, x_ND: jax.Array) -> jax.Array:
    kernel_DE = self.param(
      'kernel',
      matrix_init(('embed', 'router')),
      (x_ND.shape[-1], self.num_experts),
      jnp.float32,
    )
    return _product(x_ND, kernel_DE)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    return 2 * width * self.num_experts


@jax.custom_vjp
def _product(x_ND, kernel_DE):
  return x_ND.astype(jnp.float32) @ kernel_DE


def _forward(x_ND, kernel_DE):
  # Kept in its own dtype: a copy in f32 would be the router's largest array.
  return _product(x_ND, kernel_DE), (x_ND, kernel_DE)


def _backward(saved, dlogits_NE):
  x_ND, kernel_DE = saved
  dx_ND = dlogits_NE @ kernel_DE.T
  dkernel_DE = x_ND.astype(jnp.float32).T @ dlogits_NE
  return dx_ND.astype(x_ND.dtype), dkernel_DE


_product.defvjp(_forward, _backward)
