"""Rules that correct: what a key holds is replaced, not added to."""

import jax
import jax.numpy as jnp

from moejax.mixers.rules.rule import (
  CHANNEL,
  HEAD,
  Chunked,
  Inputs,
  outer,
  read,
  rule,
)
from pallas_kernels.chunked_delta.api import chunked_delta


def _run(inputs, state, starts_BT):
  return chunked_delta(
    inputs.q_HK,
    inputs.k_HK,
    inputs.v_GV,
    inputs.log_decay,
    inputs.beta_G,
    state_BGKV=state,
    starts_BT=starts_BT,
    scale=1.0,
  )


def _flops(key_size, value_size, chunk):
  # Three products with the state; two kinds of scores; the triangular solve;
  # its result times values and decayed keys; scores times corrected values.
  state = 6 * key_size * value_size
  scores = 4 * chunk * key_size
  solve = chunk**2 / 3 + 2 * chunk * (key_size + value_size)
  return state + scores + solve + 2 * chunk * value_size


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
