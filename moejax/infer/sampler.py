"""Samplers: `(logits_BV, key) -> ids_B`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def greedy(logits_BV: jax.Array, key: jax.Array) -> jax.Array:
  """The most likely token; the key is not used."""
  del key
  return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def temperature(
  logits_BV: jax.Array,
  key: jax.Array,
  *,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
) -> jax.Array:
  """Draws from softmax(logits / temperature), perhaps cut.

  Args:
    logits_BV: f32.
    key: PRNG key.
    temperature: above 0; lower is more certain. For 0 use `greedy`.
    top_k: keep the k most likely tokens only (1805.04833).
    top_p: keep the smallest set whose probability reaches p (1904.09751).

  Raises:
    ValueError: for a setting outside its range.
  """
  if not temperature > 0:
    raise ValueError(
      f'temperature={temperature} must be above 0; for 0 use '
      'infer.sampler.greedy.'
    )
  logits_BV = logits_BV / temperature
  if top_k is not None:
    if not 1 <= top_k <= logits_BV.shape[-1]:
      raise ValueError(
        f'top_k={top_k} must be between 1 and the vocabulary of '
        f'{logits_BV.shape[-1]}.'
      )
    least = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  if top_p is not None:
    if not 0 < top_p <= 1:
      raise ValueError(f'top_p={top_p} must be above 0 and at most 1.')
    ordered = jnp.sort(logits_BV, axis=-1, descending=True)
    prob = jax.nn.softmax(ordered)
    before = jnp.cumsum(prob, axis=-1) - prob
    kept = jnp.where(before < top_p, ordered, jnp.inf)
    least = kept.min(-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
  return jax.random.categorical(key, logits_BV).astype(jnp.int32)
