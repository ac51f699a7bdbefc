"""Latent attention against a loop in float64, and what it keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.mixers import Latent
from moejax.types import Context

B, T, D, H, C, K, R, V, THETA = 2, 9, 16, 3, 8, 6, 4, 5, 100.0
SEGMENTS = np.array([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2])
POSITIONS = np.array([[*range(4), *range(5)], [*range(7), 0, 0]])


def _latent(**fields):
  sizes = dict(latent_dim=C, nope_dim=K, rope_dim=R, value_dim=V)
  return Latent(heads=H, **(dict(rope_theta=THETA) | sizes | fields))


def _context(segments, positions):
  segments = jnp.asarray(segments, jnp.int32)
  positions = jnp.asarray(positions, jnp.int32)
  return Context(jnp.zeros_like(segments), positions, segments)


def _drawn(module):
  ctx = _context(SEGMENTS, POSITIONS)
  x = jax.random.normal(jax.random.key(0), (B, T, D))
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, ctx)
  leaves, tree = jax.tree.flatten(nn.unbox(shapes))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [
    0.5 * jax.random.normal(k, leaf.shape)
    for k, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, leaves), x, ctx


def _norm(v, scale):
  return v / np.sqrt((v**2).mean() + 1e-6) * scale


def _turn(v, position, theta):
  if theta is None:
    return v
  half = len(v) // 2
  z = v[:half] + 1j * v[half:]
  z = z * np.exp(1j * position * theta ** (-np.arange(half) / half))
  return np.concatenate([z.real, z.imag])


def _loop(p, x, theta):
  """The published equations, token by token and head by head, in float64."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), p['params'])
  x = np.asarray(x, np.float64)
  out = np.zeros((B, T, D))

  def query(v):
    if 'query_down' in p:
      v = _norm(v @ p['query_down']['kernel'], p['query_norm']['scale'])
    return np.einsum('d,dhk->hk', v, p['query']['kernel'])

  def token(v, position):
    both = v @ p['down']['kernel']
    c = _norm(both[:C], p['latent_norm']['scale'])
    return c, _turn(both[C:], position, theta)

  for b in range(B):
    for t in range(T):
      q = query(x[b, t])
      same = [s for s in range(t + 1) if SEGMENTS[b, s] == SEGMENTS[b, t]]
      kept = [token(x[b, s], POSITIONS[b, s]) for s in same]
      for h in range(H):
        q_rope = _turn(q[h, K:], POSITIONS[b, t], theta)
        logits = [
          q[h, :K] @ (c @ p['key'][:, h]) + q_rope @ k_rope
          for c, k_rope in kept
        ]
        weights = np.exp(np.array(logits) / np.sqrt(K + R))
        weights /= weights.sum()
        y = sum(
          w * (c @ p['value'][:, h])
          for w, (c, _) in zip(weights, kept, strict=True)
        )
        out[b, t] += y @ p['out']['kernel'][h]
  return out


def _difference(got, want):
  real = SEGMENTS > 0
  error = np.asarray(got)[real] - want[real]
  return np.sqrt((error**2).mean() / (want[real] ** 2).mean())


@pytest.mark.parametrize(
  'fields', [dict(query_latent_dim=7), dict(rope_theta=None)]
)
def test_it_is_the_published_attention_whole_and_absorbed(fields):
  module = _latent(**fields)
  params, x, ctx = _drawn(module)
  want = _loop(params, x, module.rope_theta)

  @jax.jit
  def both(params, x):
    """In one call, and token by token through the absorbed form."""

    def step(state, place):
      token = jax.tree.map(lambda a: a[:, place][:, None], (x, ctx))
      y, state = module.apply(params, *token, state)
      return state, y[:, 0]

    state = module.init_state(B, T, D, 'float32')
    _, steps = jax.lax.scan(step, state, jnp.arange(T))
    return module.apply(params, x, ctx)[0], steps.swapaxes(0, 1)

  for got in both(params, x):
    assert _difference(got, want) < 1e-5


def test_576_numbers_are_kept_of_a_token_at_the_published_sizes():
  module = Latent(
    heads=128, latent_dim=512, nope_dim=128, rope_dim=64, value_dim=128
  )
  state = jax.eval_shape(lambda: module.init_state(2, 10, 7168, 'bfloat16'))
  assert sum(leaf.size for leaf in state.kept) == 2 * 10 * 576
  assert {leaf.dtype for leaf in state.kept} == {jnp.dtype('bfloat16')}


def test_decoding_never_makes_the_keys_of_the_heads():
  module = _latent()
  params, x, ctx = _drawn(module)
  length = 50

  def flops(tokens):
    state = module.init_state(B, length, D, 'float32')
    args = jax.tree.map(lambda a: a[:, :tokens], (x, ctx))
    lowered = jax.jit(module.apply).lower(params, *args, state)
    return lowered.cost_analysis()['flops']

  made = 2 * B * length * C * H * (K + V)
  assert flops(1) < made < flops(2)


def test_it_counts_the_flops_of_its_matrices():
  module, length = _latent(query_latent_dim=7), 20
  query, kept = D * 7 + 7 * H * (K + R), D * (C + R)
  made, out = C * H * (K + V), H * V * D
  core = H * (K + R + V) * (length + 1) / 2
  assert module.flops(D, length) == 2 * (query + kept + made + out + core)


def test_it_refuses_a_rotary_key_of_odd_size():
  with pytest.raises(ValueError, match='rope_dim=3 is odd'):
    _latent(rope_dim=3).init_state(1, 1, D, 'float32')
  _latent(rope_dim=3, rope_theta=None).init_state(1, 1, D, 'float32')
