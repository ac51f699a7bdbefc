"""Rules that add: a decaying sum of outer products of keys and values."""

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
from pallas_kernels.chunked_linear.api import chunked_linear


def _run(inputs, state, starts_BT):
  x, v_BTGV = inputs, inputs.v_GV
  if x.beta_G is not None:
    v_BTGV = (x.beta_G[..., None] * v_BTGV).astype(v_BTGV.dtype)
  inputs_BT = x.q_HK, x.k_HK, v_BTGV, x.log_decay
  return over_mesh(chunked_linear, context.linear, inputs_BT, state, starts_BT)


def _flops(key_size, value_size, chunk, per_channel):
  # Two products with the state; scores, and those times values.
  scores = score_flops(1, key_size, chunk, per_channel)
  return 4 * key_size * value_size + scores + 2 * chunk * value_size


IN_CHUNKS = Chunked(_run, _flops)


@rule(IN_CHUNKS, decay=CHANNEL)
def gla(state: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """S = Diag(a) S + k^T v;  y = q S.

  Gated linear attention: a decay for each channel of the key.
  Source: 2312.06635 eq. 3.
  """
  return _add(jnp.exp(inputs.log_decay)[..., None] * state, inputs)


@rule(IN_CHUNKS, decay=HEAD)
def retention(state: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """S = g S + k^T v;  y = q S, g one number per head.

  Source: 2307.08621 eq. 6.
  """
  return _add(jnp.exp(inputs.log_decay)[..., None, None] * state, inputs)


@rule(IN_CHUNKS, decay=HEAD)
def lightning(state: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """S = l S + k^T v;  y = q S, l one number per head.

  The same recurrence as retention; heads and layers have other numbers.
  Source: 2401.04658 sec. 2.2.
  """
  return retention(state, inputs)


@rule(IN_CHUNKS, decay=HEAD, beta=True)
def ssd(state: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
  """S = e^(A dt) S + dt B^T x;  y = C S.

  The structured state space of Mamba-2: C is q, B is k, x is v, dt is beta
  and A dt is the log decay.  Source: 2405.21060 eq. 2 with A a number.
  Differs: the state is transposed; the skip D x is the mixer's.
  """
  x = inputs.beta_G[..., None] * inputs.v_GV
  state = jnp.exp(inputs.log_decay)[..., None, None] * state
  return _add(state, inputs.replace(v_GV=x))


def _add(state, inputs):
  state = state + outer(inputs.k_HK, inputs.v_GV)
  return state, read(state, inputs.q_HK)
