"""Affinities: what selection ranks, `logits_NE -> affinity_NE`."""

import jax


def sigmoid(logits_NE: jax.Array) -> jax.Array:
  """Each expert's own probability.  Source: 2412.19437 eq. 15."""
  return jax.nn.sigmoid(logits_NE)


def softmax(logits_NE: jax.Array) -> jax.Array:
  """Probabilities over the experts.  Source: 1701.06538 eq. 2."""
  return jax.nn.softmax(logits_NE, axis=-1)
