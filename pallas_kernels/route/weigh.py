"""Combine weights of the chosen, and their gradient by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def weights(options, ids_NK, chosen_NK, total_N):
  """f32 [N, K]; zero where there is no expert."""
  if options.weigh == 'raw':
    w = chosen_NK
  elif options.shares:
    w = options.scale * jnp.exp(chosen_NK - total_N[:, None])
  else:
    log_gate = chosen_NK
    if options.weigh == 'sigmoid':
      log_gate = jax.nn.log_sigmoid(chosen_NK)
    if options.normalise:
      w = options.scale * jax.nn.softmax(log_gate, axis=-1)
    else:
      w = options.scale * jnp.exp(log_gate)
  return jnp.where(ids_NK < options.experts, w, 0)


def kept(options, chosen_NK, weights_NK, logits_NE):
  """What the gradient needs beside the ids: as little as there can be."""
  if options.weigh == 'raw':
    return ()
  if options.weigh == 'sigmoid':
    return (chosen_NK,)
  return (weights_NK, logits_NE) if options.shares else (weights_NK,)


def gradient(options, kept, dweights_NK):
  """-> dchosen_NK, and dlogits_NE of what all experts share or None."""
  if options.weigh == 'raw':
    return dweights_NK, None
  if options.shares:
    weights_NK, logits_NE = kept
    dchosen_NK = dweights_NK * weights_NK
    total_N1 = dchosen_NK.sum(-1, keepdims=True)
    # The logits of a token that goes nowhere may be anything.
    dlogits_NE = jnp.where(
      total_N1 == 0, 0, -total_N1 * jax.nn.softmax(logits_NE, axis=-1)
    )
    return dchosen_NK, dlogits_NE
  if options.weigh == 'softmax':
    share_NK = kept[0] / options.scale
  else:
    log_gate = jax.nn.log_sigmoid(kept[0])
    share_NK = (
      jax.nn.softmax(log_gate, axis=-1)
      if options.normalise
      else jnp.exp(log_gate)
    )
  dlog_NK = options.scale * share_NK * dweights_NK
  if options.normalise:
    dlog_NK -= share_NK * dlog_NK.sum(-1, keepdims=True)
  if options.weigh == 'sigmoid':
    dlog_NK *= jax.nn.sigmoid(-kept[0])
  return dlog_NK, None
