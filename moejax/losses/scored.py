"""Which targets count, and which answers are right."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from moejax.losses.chunks import by_device, chunks
from moejax.types import Outputs


def weights_BT(batch: Mapping[str, jax.Array]) -> jax.Array:
  """f32: 1 for a target that counts, 0 for padding and for prompts.

  Args:
    batch: segments, int32 [B, T], and perhaps scored, 1 for what counts.
  """
  counts_BT = batch['segments'] > 0
  if 'scored' in batch:
    counts_BT &= batch['scored'] > 0
  return counts_BT.astype(jnp.float32)


def right_answers(
  outputs: Outputs, batch: Mapping[str, jax.Array], *, chunk_tokens: int = 4096
) -> tuple[jax.Array, jax.Array]:
  """How many answers greedy decoding would give as they are, and of how many.

  Every token of the answer must have the largest logit after the tokens
  before it; that is when decoding, which sees the same tokens, emits it.

  Args:
    outputs: of the model; hidden_BTD and head_DV.
    batch: targets, segments and scored, int32 [B, T]. An answer is what is
      scored of a segment.
    chunk_tokens: at most about this many tokens of a device have logits at a
      time.
  """
  tokens = outputs.hidden_BTD, batch['targets']
  hits_BT = by_device(_hits, tokens, outputs.head_DV, chunk_tokens)
  scored_BT = weights_BT(batch) > 0
  has_BS = _any_of_segment(scored_BT, batch['segments'])
  missed_BS = _any_of_segment(scored_BT & ~hits_BT, batch['segments'])
  return (has_BS & ~missed_BS).sum(), has_BS.sum()


def _hits(hidden_BTD, targets_BT, head_DV, chunk_tokens):
  """bool [B, T]: whether the target has the largest logit."""
  batch, length = targets_BT.shape
  size = min(length, max(1, chunk_tokens // batch))

  def step(_, chunk):
    x, target = chunk
    logits = jnp.einsum(
      'btd,dv->btv', x, head_DV, preferred_element_type=jnp.float32
    )
    return None, logits.argmax(-1) == target

  parts = chunks(hidden_BTD, size), chunks(targets_BT, size)
  _, hits = jax.lax.scan(step, None, parts)
  return hits.swapaxes(0, 1).reshape(batch, -1)[:, :length]


def _any_of_segment(where_BT, segments_BT):
  """bool [B, T + 1]: whether there is one in the row's segment of a number."""
  batch, length = where_BT.shape
  none_BS = jnp.zeros((batch, length + 1), bool)
  return none_BS.at[jnp.arange(batch)[:, None], segments_BT].max(where_BT)
