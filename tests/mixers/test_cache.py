"""A window needs as many places as it has tokens, however they come."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moejax.mixers import Attention
from moejax.types import Context

T, D, WINDOW, PADDED = 11, 8, 3, 2


def _attention():
  return Attention(heads=2, kv_heads=1, window=WINDOW)


@jax.jit
def _apply(params, x, ctx, state=None):
  return _attention().apply(params, x, ctx, state)


def _cut(tree, own):
  return jax.tree.map(lambda a: a[:, own], tree)


def test_pieces_of_any_length_give_what_the_whole_gives():
  segments = np.ones((2, T), np.int32)
  segments[1, :PADDED] = 0  # a shorter row, padded on the left
  positions = np.maximum(segments.cumsum(1) - 1, 0)
  ctx = Context(jnp.zeros((2, T), jnp.int32), positions, segments)
  x = jax.random.normal(jax.random.key(0), (2, T, D))
  params = nn.unbox(_attention().init(jax.random.key(1), x, ctx))
  want, _ = _apply(params, x, ctx)

  state = _attention().init_state(2, 1000, D, 'float32')
  assert state.segments_BS.shape == (2, WINDOW)
  parts, start = [], 0
  for size in (4, 1, 1, 2, 1, 2):  # longer, shorter than the window, and one
    own = slice(start, start + size)
    y, state = _apply(params, *_cut((x, ctx), own), state)
    parts.append(y)
    start += size
  assert start == T and state.length == T
  got = np.concatenate(parts, 1)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    got[1, PADDED:], want[1, PADDED:], rtol=1e-5, atol=1e-6
  )


def test_a_short_sequence_gets_no_more_places_than_it_has_tokens():
  state = jax.eval_shape(lambda: _attention().init_state(2, 2, D, 'float32'))
  assert state.kept[0].shape[:2] == (2, 2)
