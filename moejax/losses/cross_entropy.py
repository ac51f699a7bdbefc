"""Cross entropy in chunks, so that [N, V] logits never exist."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from moejax.losses import scored
from moejax.losses.chunks import by_device, chunks
from moejax.types import Outputs


def cross_entropy(
  outputs: Outputs, batch: Mapping[str, jax.Array], *, chunk_tokens: int = 4096
) -> jax.Array:
  """Mean negative log-likelihood, in nats per target that counts.

  Args:
    outputs: of the model; hidden_BTD and head_DV.
    batch: targets and segments, int32 [B, T]; segment 0 is left out, and what
      is not scored where the batch has `scored`.
    chunk_tokens: at most about this many tokens of a device have logits at a
      time.
  """
  weights_BT = scored.weights_BT(batch)
  tokens = outputs.hidden_BTD, batch['targets'], weights_BT

  def own(hidden_BTD, targets_BT, weights_BT, head_DV, chunk_tokens):
    return chunked_nll(
      hidden_BTD, head_DV, targets_BT, weights_BT, chunk_tokens
    ).reshape(1, 1)

  total = by_device(own, tokens, outputs.head_DV, chunk_tokens).sum()
  return total / jnp.maximum(weights_BT.sum(), 1.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked_nll(
  hidden_BTD: jax.Array,
  head_DV: jax.Array,
  targets_BT: jax.Array,
  weights_BT: jax.Array,
  chunk_tokens: int,
) -> jax.Array:
  """Sum of weight * (logsumexp(logits) - logit of the target), f32.

  Chunks cut the time axis, so that a batch sharded over devices stays where
  it is. The forward pass of a gradient also makes the gradients, as the loss
  is linear in its cotangent; logits are formed once. The weights get no
  gradient.
  """
  return _scan(hidden_BTD, head_DV, targets_BT, weights_BT, chunk_tokens, None)


def _forward(hidden, head, targets, weights, chunk_tokens):
  zeros = jnp.zeros(head.shape, jnp.float32)
  total, d_hidden, d_head = _scan(
    hidden, head, targets, weights, chunk_tokens, zeros
  )
  empty = jnp.zeros((0,), head.dtype)  # carries the dtype of the head
  return total, (d_hidden, d_head, empty)


def _backward(chunk_tokens, residuals, d_total):
  del chunk_tokens
  d_hidden, d_head, head_like = residuals
  d_hidden = (d_hidden * d_total).astype(d_hidden.dtype)
  return d_hidden, (d_head * d_total).astype(head_like.dtype), None, None


chunked_nll.defvjp(_forward, _backward)


def _scan(hidden, head, targets, weights, chunk_tokens, d_head):
  """The sum alone, or with both gradients when `d_head` is given."""
  batch, length, _ = hidden.shape
  size = min(length, max(1, chunk_tokens // batch))
  cut = functools.partial(chunks, size=size)

  def step(carry, chunk):
    total, d_head = carry
    x, target, weight = chunk
    # where, not multiplication: padding may hold anything, even nan.
    x = jnp.where(weight[..., None] > 0, x, 0)
    logits = jnp.einsum(
      'btd,dv->btv', x, head, preferred_element_type=jnp.float32
    )
    peak = logits.max(-1, keepdims=True)
    exp = jnp.exp(logits - peak)
    norm = exp.sum(-1, keepdims=True)
    picked = jnp.take_along_axis(logits, target[..., None], -1)
    nll = (jnp.log(norm) + peak - picked)[..., 0]
    total += (nll * weight).sum()
    if d_head is None:
      return (total, None), None
    one_hot = target[..., None] == jnp.arange(head.shape[-1])
    d_logits = (exp / norm - one_hot) * weight[..., None]
    d_logits = d_logits.astype(x.dtype)
    d_x = jnp.einsum('btv,dv->btd', d_logits, head)
    d_head += jnp.einsum(
      'btd,btv->dv', x, d_logits, preferred_element_type=jnp.float32
    )
    return (total, d_head), d_x

  start = jnp.zeros((), jnp.float32), d_head
  parts = cut(hidden), cut(targets), cut(weights)
  (total, d_head), d_x = jax.lax.scan(step, start, parts)
  if d_head is None:
    return total
  d_hidden = d_x.swapaxes(0, 1).reshape(batch, -1, hidden.shape[-1])
  return total, d_hidden[:, :length].astype(hidden.dtype), d_head
