"""The global norm of gradients, and clipping by it."""

import jax
import jax.numpy as jnp
import optax


def global_norm(grads):
  """Euclidean norm over every element of a tree, f32 [], summed in f32."""
  squares = [
    jnp.sum(jnp.square(grad.astype(jnp.float32)))
    for grad in jax.tree.leaves(grads)
  ]
  return jnp.sqrt(sum(squares, jnp.zeros([], jnp.float32)))


def clip_by_global_norm(limit, counted):
  """Scales the gradients down so that their global norm is at most `limit`.

  `counted` is a tree of booleans: which leaves the norm is taken over.

  One scalar factor, where `optax.clip_by_global_norm` divides every element:
  XLA never repeats a division inside later fusions, so it writes the clipped
  gradients to memory. An AdamW step of 21M parameters took 51 ms with
  optax's and 22 ms with this one (two CPU cores, f32).
  """

  def update(grads, _):
    norm = global_norm(
      jax.tree.map(lambda grad, count: grad if count else None, grads, counted)
    )
    factor = jnp.minimum(1.0, limit / jnp.maximum(norm, jnp.finfo('f4').tiny))
    return jax.tree.map(lambda grad: grad * factor.astype(grad.dtype), grads)

  return optax.stateless(update)
