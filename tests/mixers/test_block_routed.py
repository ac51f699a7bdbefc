"""Attention to picked blocks against a loop in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.mixers import BlockRouted
from moejax.mixers.block_routed import BlockCore
from moejax.mixers.cache import Places
from moejax.types import Context

# Oracles and the module itself, in pieces: no claim on machine code.
pytestmark = pytest.mark.usefixtures('quick_compilation')

B, T, H, G, SIZE, VALUE, C, K = 2, 23, 4, 2, 6, 5, 3, 3
# Documents of any length, padding between and after them.
SEGMENTS = np.array([[1] * 13 + [2] * 2 + [3] * 8, [1] * 20 + [0] * 3])
POSITIONS = np.array([[*range(13), 0, 1, *range(8)], [*range(20), 0, 0, 0]])
REAL = SEGMENTS > 0


def _context():
  segments, positions = (jnp.asarray(a) for a in (SEGMENTS, POSITIONS))
  return Context(jnp.zeros_like(segments), positions, segments)


def _drawn():
  keys = jax.random.split(jax.random.key(0), 3)
  sizes = (H, SIZE), (G, SIZE), (G, VALUE)
  return [
    jax.random.normal(key, (B, T, *size))
    for key, size in zip(keys, sizes, strict=True)
  ]


def _loop(q, k, v, picks):
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  out = np.zeros((B, T, H, VALUE))
  for b, t, h in np.ndindex(B, T, H):
    g, place = h // (H // G), POSITIONS[b, t]
    first = t - place
    own = range(t - place % C, t + 1)
    starts = [first + C * i for i in range(place // C)]
    scores = [q[b, t, h] @ k[b, s : s + C, g].mean(0) for s in starts]
    best = np.argsort(scores)[::-1][: picks - 1]
    seen = [*own, *(starts[i] + c for i in best for c in range(C))]
    logits = k[b, seen, g] @ q[b, t, h] / np.sqrt(SIZE)
    weights = np.exp(logits - logits.max())
    out[b, t, h] = weights @ v[b, seen, g] / weights.sum()
  return out


def _rms(got, want):
  error = np.asarray(got, np.float64)[REAL] - np.asarray(want)[REAL]
  return np.sqrt((error**2).mean() / (np.asarray(want)[REAL] ** 2).mean())


@pytest.mark.parametrize('picks', [K, 1])
def test_a_query_sees_its_own_block_and_the_best_before_it(picks):
  core, ctx = BlockCore(C, picks), _context()
  weight = jax.random.normal(jax.random.key(5), (B, T, H, VALUE))
  weight = weight * REAL[..., None, None]

  @jax.jit
  def both(*args):
    """Sorted by block, and with the mask that decoding uses."""
    found = []
    for places in (None, Places((), ctx.positions_BT, ctx.segments_BT)):
      y, pull = jax.vjp(
        lambda *args, p=places: core.apply({}, *args, ctx, p), *args
      )
      found.append((y, pull(weight)))
    return found

  args = _drawn()
  (sparse, grads), (dense, dense_grads) = both(*args)
  want = _loop(*args, picks)
  assert _rms(sparse, want) < 1e-5 and _rms(dense, want) < 1e-5
  # Far from what all keys would give.
  assert _rms(_loop(*args, 99), want) > 0.1
  for got, other in zip(grads, dense_grads, strict=True):
    assert _rms(got, other) < 1e-5


@pytest.mark.slow  # the contracts of mixers ask this of a smaller one
def test_pieces_give_what_the_whole_gives():
  length = 20
  module = BlockRouted(heads=H, kv_heads=G, head_dim=SIZE, block_tokens=C, k=2)
  positions = jnp.arange(length)[None]
  ctx = Context(positions, positions, jnp.ones_like(positions))
  x = jax.random.normal(jax.random.key(0), (1, length, 8))
  params = nn.unbox(module.init(jax.random.key(1), x, ctx))
  want, _ = jax.jit(module.apply)(params, x, ctx)

  @jax.jit
  def step(state, args):
    return module.apply(params, *args, state)[::-1]

  cut = jax.tree.map(lambda a: a[:, :7], (x, ctx))
  state, first = step(module.init_state(1, length, 8, 'float32'), cut)
  rest = jax.tree.map(lambda a: a[:, 7:].swapaxes(0, 1)[:, None], (x, ctx))
  _, last = jax.lax.scan(step, state, rest)
  got = np.concatenate([first[0], last[:, 0, 0]])
  np.testing.assert_allclose(got, want[0], rtol=2e-5, atol=2e-6)


def test_a_window_beside_blocks_is_refused():
  module = BlockRouted(heads=H, kv_heads=G, block_tokens=C, k=K, window=3)
  x = jnp.zeros((B, T, 8))
  with pytest.raises(ValueError, match='window=3 and blocks'):
    jax.eval_shape(module.init, jax.random.key(0), x, _context())


def test_flops_count_the_blocks_that_are_picked():
  module = BlockRouted(heads=H, kv_heads=G, head_dim=SIZE, block_tokens=4, k=3)
  length = 24
  seen = np.mean([t % 4 + 1 + 4 * min(t // 4, 2) for t in range(length)])
  means = np.mean([t // 4 for t in range(length)])
  matrices = 2 * 8 * SIZE * (2 * H + 2 * G)
  core = 2 * SIZE * H * (2 * seen + means)
  np.testing.assert_allclose(module.flops(8, length), matrices + core)
