"""Rules that correct: what a key holds is replaced, not added to."""

import jax
import jax.numpy as jnp

from moejax.mixers.rules.rule import (
  CHANNEL,
  HEAD,
  Chunked,
  Inputs,
  outer,
  over_mesh,
  read,
  rule,
  score_flops,
)
from pallas_kernels.chunked import context
from pallas_kernels.chunked_delta.api import chunked_delta


def _run(inputs, state, starts_BT):
  x = inputs
  inputs_BT = x.q_HK, x.k_HK, x.v_GV, x.log_decay, x.beta_G
  return over_mesh(chunked_delta, context.delta, inputs_BT, state, starts_BT)


def _flops(key_size, value_size, chunk, per_channel):
  # Three products with the state; scores of queries and of keys; the inverse
  # of the triangle, by halves; it and the scores times corrected values.
  state = 6 * key_size * value_size
  scores = score_flops(2, key_size, chunk, per_channel)
  return state + scores + 2 * (chunk**2 - 1) / 3 + 4 * chunk * value_size


IN_CHUNKS = Chunked(_run, _flops)


@rule(IN_CHUNKS, decay=CHANNEL, beta=True)
def kda(state: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """S' = Diag(a) S;  S = S' + b k^T (v - k S');  y = q S.

  The delta rule with a decay for each channel of the key (Kimi Delta
  Attention).  Source: 2510.26692 eq. 1.
  """
  return _correct(jnp.exp(inputs.log_decay)[..., None] * state, inputs)


@rule(IN_CHUNKS, decay=HEAD, beta=True)
def gated_delta(
  state: jax.Array, inputs: Inputs
) -> tuple[jax.Array, jax.Array]:
  """S' = a S;  S = S' + b k^T (v - k S');  y = q S.

  One decay per head.  Source: 2412.06464 eq. 10.
  """
  return _correct(jnp.exp(inputs.log_decay)[..., None, None] * state, inputs)


@rule(IN_CHUNKS, beta=True)
def delta(state: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """S = S + b k^T (v - k S);  y = q S.  Source: 2406.06484 sec. 2.2."""
  return _correct(state, inputs)


def _correct(state, inputs):
  wrong = inputs.v_GV - read(state, inputs.k_HK)
  state = state + outer(inputs.k_HK, inputs.beta_G[..., None] * wrong)
  return state, read(state, inputs.q_HK)
