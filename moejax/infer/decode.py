"""Prefill, then one token at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct as struct
import jax
import jax.numpy as jnp
import numpy as np

from moejax.build import OWNED_BY_FLAX
from moejax.model import Model
from moejax.types import Context


@struct.dataclass
class Prompts:
  """Prompts of any lengths, padded on the left to one length T.

  Attributes:
    tokens_BT: int32.
    positions_BT: int32, 0 at the first token of a prompt.
    segments_BT: int32, 0 for padding, 1 for the prompt.
  """

  tokens_BT: jax.Array
  positions_BT: jax.Array
  segments_BT: jax.Array


def pad_prompts(prompts: Sequence[Sequence[int]]) -> Prompts:
  """Pads on the left, so that all prompts end at the same place.

  Raises:
    ValueError: for no prompts, or an empty one.
  """
  if not prompts or not all(len(p) for p in prompts):
    raise ValueError(
      'every prompt needs at least one token; begin it with the end-of-'
      'document id, as in training.'
    )
  length = max(map(len, prompts))
  tokens = np.zeros((len(prompts), length), np.int32)
  segments = np.zeros_like(tokens)
  for row, prompt in enumerate(prompts):
    tokens[row, length - len(prompt) :] = prompt
    segments[row, length - len(prompt) :] = 1
  positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
  return Prompts(tokens, positions, segments)


def decode(
  model: Model,
  variables: Any,
  prompts: Prompts,
  *,
  max_tokens: int,
  sample: Callable,
  key: jax.Array,
  end: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Continues each prompt by up to `max_tokens` tokens.

  The prompts are prefilled in one call and each token is one more call, both
  of them the call that training makes.

  Args:
    model: a causal model.
    variables: its parameters and balance state.
    prompts: from `pad_prompts`.
    max_tokens: M, new tokens per prompt.
    sample: `(logits_BV, key) -> ids_B`.
    key: PRNG key.
    end: id after which a sequence stops; None never stops.

  Returns:
    tokens_BM int32, `end` (or 0) after a sequence's last token, and
    lengths_B int32, the tokens before `end`.

  Raises:
    ValueError: if the model routes with a view of later tokens.
  """
  require_causal(model)
  batch, length = prompts.tokens_BT.shape
  filler = 0 if end is None else end

  def call(tokens, positions, segments, state):
    ctx = Context(tokens, positions, segments)
    outputs, state = model.apply(variables, ctx, state)
    last = outputs.replace(hidden_BTD=outputs.hidden_BTD[:, -1:])
    return last.logits_BTV()[:, 0], state

  def step(carry):
    index, logits, state, tokens, alive, key = carry
    key, use = jax.random.split(key)
    chosen = jnp.where(alive, sample(logits, use), filler)
    tokens = tokens.at[:, index].set(chosen)
    if end is not None:
      alive = alive & (chosen != end)
    position = prompts.positions_BT[:, -1:] + 1 + index
    logits, state = call(
      chosen[:, None], position, jnp.ones((batch, 1), jnp.int32), state
    )
    return index + 1, logits, state, tokens, alive, key

  def unfinished(carry):
    index, _, _, _, alive, _ = carry
    return (index < max_tokens) & alive.any()

  state = model.init_state(batch, length + max_tokens)
  logits, state = call(
    prompts.tokens_BT, prompts.positions_BT, prompts.segments_BT, state
  )
  tokens = jnp.full((batch, max_tokens), filler, jnp.int32)
  alive = jnp.ones((batch,), bool)
  carry = jnp.zeros((), jnp.int32), logits, state, tokens, alive, key
  carry = jax.lax.while_loop(unfinished, step, carry)
  tokens = carry[3]
  if end is None:
    return tokens, jnp.full((batch,), max_tokens, jnp.int32)
  ended = jnp.cumsum(tokens == end, axis=1) > 0
  return tokens, (~ended).sum(1, dtype=jnp.int32)


def require_causal(model: Model) -> None:
  """Raises if any layer sees later tokens.

  Raises:
    ValueError: naming the layer's part and a substitute.
  """
  for path, block, _ in model.layer_paths():
    for part in _modules(block):
      if not getattr(part, 'causal', True):
        raise ValueError(
          f'{path}: {type(part).__name__} sees later tokens, so it cannot '
          'decode; put a causal one in its place with config.infer.overlay, '
          'such as routers.Router.'
        )


def _modules(node: Any) -> Iterator[nn.Module]:
  """A module and all modules in its fields, to any depth."""
  if isinstance(node, nn.Module):
    yield node
    inner = [
      getattr(node, field.name)
      for field in dataclasses.fields(node)
      if field.name not in OWNED_BY_FLAX
    ]
  elif isinstance(node, Mapping):
    inner = list(node.values())
  else:
    inner = node if isinstance(node, (list, tuple)) else ()
  for child in inner:
    yield from _modules(child)
