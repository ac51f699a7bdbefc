"""Weighing: `(chosen_NK, logits_NE) -> weights_NK`, in f32.

`chosen_NK` holds the logits of the chosen experts, never their bias.
"""

import jax
import jax.numpy as jnp


def softmax(
  chosen_NK: jax.Array,
  logits_NE: jax.Array,
  *,
  normalise: bool = True,
  scale: float = 1.0,
) -> jax.Array:
  """Softmax probabilities of the chosen, made to sum to 1 if `normalise`.

  Normalised it is the softmax over the chosen (2401.04088 sec. 2.1), else the
  share of the softmax over all experts (2101.03961 eq. 2).
  """
  if normalise:
    return scale * jax.nn.softmax(chosen_NK, axis=-1)
  total = jax.nn.logsumexp(logits_NE, axis=-1, keepdims=True)
  return scale * jnp.exp(chosen_NK - total)


def sigmoid(
  chosen_NK: jax.Array,
  logits_NE: jax.Array,
  *,
  normalise: bool = True,
  scale: float = 1.0,
) -> jax.Array:
  """Sigmoids of the chosen, made to sum to 1 if `normalise`.

  Source: 2412.19437 eq. 13 to 15.  Computed by log-sigmoids, so that very
  negative logits do not divide 0 by 0.
  """
  del logits_NE
  log_gate = jax.nn.log_sigmoid(chosen_NK)
  if normalise:
    return scale * jax.nn.softmax(log_gate, axis=-1)
  return scale * jnp.exp(log_gate)


def raw(chosen_NK: jax.Array, logits_NE: jax.Array) -> jax.Array:
  """The logits themselves."""
  del logits_NE
  return chosen_NK
