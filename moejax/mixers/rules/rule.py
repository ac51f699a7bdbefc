"""What a rule reads, what it declares, and how it runs over tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.sharding import ROWS, TOKENS, by_device
from pallas_kernels.chunked.fold import CHUNK

CHANNEL, HEAD = 'channel', 'head'


@struct.dataclass
class Inputs:
  """What a rule reads of one token, or of [B, T] tokens in front.

  Attributes:
    q_HK, k_HK: queries, already scaled, and keys of H heads.
    v_GV: values of G heads; value head g belongs to key head g // (G / H).
    log_decay: f32 and at most 0, [G] (per head) or [G, K] (per channel).
    beta_G: f32, how strongly a value is written.
  """

  q_HK: jax.Array
  k_HK: jax.Array
  v_GV: jax.Array
  log_decay: jax.Array | None = None
  beta_G: jax.Array | None = None

  def per_value_head(self) -> Inputs:
    """The same with G queries and keys."""
    times = self.v_GV.shape[-2] // self.q_HK.shape[-2]
    q, k = (jnp.repeat(a, times, axis=-2) for a in (self.q_HK, self.k_HK))
    return self.replace(q_HK=q, k_HK=k)


@dataclasses.dataclass(frozen=True)
class Chunked:
  """The same as a rule over many tokens at once.

  Attributes:
    run: `(inputs_BT, state_BGKV or None, starts_BT) -> (y_BTGV, state_BGKV)`.
    flops: `(key_size, value_size, chunk, per_channel)` to the forward FLOPs of
      matrix products per token and value head; `per_channel` says whether each
      channel of the key has a decay of its own.
  """

  run: Callable
  flops: Callable


def flops(rule: Callable, key_size: int, value_size: int, length: int) -> float:
  """Forward FLOPs of a rule per token and value head.

  They are those of the plain form in XLA, at its chunk, whatever the platform:
  the cost of a recipe must not depend on where it runs.
  """
  chunk = min(CHUNK, 1 << (length - 1).bit_length())
  per_channel = rule.decay == CHANNEL
  return rule.chunked.flops(key_size, value_size, chunk, per_channel)


def score_flops(
  kinds: int, key_size: int, chunk: int, per_channel: bool
) -> float:
  """FLOPs per token of scores within a chunk, of `kinds` rows for each token.

  One product of all with all; with a decay for each channel, products of later
  with earlier halves only, whose number of pairs is half of that.
  """
  pairs = (chunk - 1) / 2 if per_channel else chunk
  return 2 * kinds * pairs * key_size


def rule(chunked: Chunked, *, decay: str | None = None, beta: bool = False):
  """Declares a step `(S, inputs_t) -> (S, y_t)` to be a rule.

  Args:
    chunked: what computes it for more than one token.
    decay: whether it reads a log decay, and which: None, HEAD or CHANNEL.
    beta: whether it reads a write strength.
  """

  def declare(step):
    step.chunked, step.decay, step.beta = chunked, decay, beta
    return step

  return declare


def run(
  rule: Callable,
  inputs: Inputs,
  state_BGKV: jax.Array | None,
  starts_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Runs a rule over [B, T] tokens.

  Args:
    rule: a step that `rule` declared.
    inputs: of [B, T] tokens.
    state_BGKV: f32, None for zeros.
    starts_BT: bool; the state before such a token counts as zero.

  Returns:
    y_BTGV in the dtype of the values, and the state after the last token.
  """
  if state_BGKV is None or inputs.q_HK.shape[1] > 1:
    return rule.chunked.run(inputs, state_BGKV, starts_BT)
  state_BGKV = jnp.where(starts_BT[..., None, None], 0, state_BGKV)
  token = jax.tree.map(lambda a: a[:, 0], inputs.per_value_head())
  state_BGKV, y_BGV = rule(state_BGKV, token)
  return y_BGV[:, None].astype(inputs.v_GV.dtype), state_BGKV


def over_mesh(
  alone: Callable,
  shared: Callable,
  inputs_BT: tuple,
  state_BGKV: jax.Array | None,
  starts_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """A chunked operation over the mesh in force; queries come scaled.

  Args:
    alone: the operation.
    shared: the same of `chunked.context`, where devices share a sequence.
    inputs_BT: its positional arguments.
    state_BGKV: before the first token.
    starts_BT: bool, where documents start.
  """

  def own(axis, inputs_BT, state_BGKV, starts_BT):
    op = alone if axis is None else functools.partial(shared, axis)
    return op(*inputs_BT, state_BGKV=state_BGKV, starts_BT=starts_BT, scale=1.0)

  args, axes = (inputs_BT, state_BGKV, starts_BT), (TOKENS, ROWS, TOKENS)
  return by_device(own, args, axes, (TOKENS, ROWS))


def read(state: jax.Array, x: jax.Array) -> jax.Array:
  """x S for each head: [..., K, V] and [..., K] -> [..., V].

  A sum of products, not a matrix product: a state is f32 on every platform,
  and one row times a matrix has nothing for a matrix unit to do.
  """
  return (x[..., None] * state).sum(-2)


def outer(k: jax.Array, v: jax.Array) -> jax.Array:
  """k^T v for each head: [..., K] and [..., V] -> [..., K, V]."""
  return k[..., None] * v[..., None, :]
