"""Mixers and blocks: causal, packed, and the same with a decode state."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.mixers import Attention
from moejax.types import Context, Stream

# Oracles and the module itself, in pieces: no claim on machine code.
pytestmark = pytest.mark.usefixtures('quick_compilation')

D, T = 16, 10


def context(segments, positions=None):
  segments = jnp.asarray(segments, jnp.int32)
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
  return Context(jnp.zeros_like(segments), jnp.asarray(positions), segments)


@functools.cache
def variables(module):
  made = jax.jit(module.init)(
    jax.random.key(0), inputs(), context(jnp.ones((2, T)))
  )
  keys = iter(jax.random.split(jax.random.key(1), 50))
  # Not the initial values: a norm scale of 1 would hide that it is unused.
  return jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), nn.unbox(made)
  )


def inputs(seed=5):
  return jax.random.normal(jax.random.key(seed), (2, T, D))


def apply(module, x, ctx, state=None):
  return _apply(module, variables(module), x, ctx, state)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, x, ctx, state):
  return module.apply(params, x, ctx, state)


class AsMixer(nn.Module):
  """A block with the signature of a mixer."""

  block: nn.Module

  def __call__(self, x, ctx, state=None):
    stream, state = self.block(Stream(x), ctx, state)
    return stream.x_BTD, state

  def init_state(self, *args):
    return self.block.init_state(*args)


def check_causal(module):
  ctx, params = context(jnp.ones((2, T))), variables(module)

  @jax.jit
  def gradient(x, t):
    def total(x):
      y = module.apply(params, x, ctx)[0]
      return (y[:, t] * jnp.arange(1, D + 1)).sum()

    return jax.grad(total)(x)

  for t in (0, 4, T - 1):
    g = np.abs(gradient(inputs(), t)).max(-1)
    assert (g[:, t + 1 :] == 0).all()
    assert (g[:, : t + 1] > 0).all()


def check_decode(module):
  """Left padding, then prefill and single tokens, equals each row alone."""
  x = inputs()
  full, none = apply(module, x, context(jnp.ones((2, T))))
  assert none is None
  segments = np.ones((2, T + 3), np.int32)
  segments[1, :3] = 0  # row 1 is 3 places shorter
  positions = np.maximum(segments.cumsum(1) - 1, 0)
  shifted = jnp.stack(
    [jnp.pad(x[0], ((0, 3), (0, 0))), jnp.pad(x[1], ((3, 0), (0, 0)))]
  )
  for split in (4, 9):
    state = module.init_state(2, T + 3, D, 'float32')
    parts, start = [], 0
    for stop in (split, *range(split + 1, T + 1)):
      own = slice(start, stop)
      ctx = context(segments[:, own], positions[:, own])
      y, state = apply(module, shifted[:, own], ctx, state)
      parts.append(y)
      start = stop
    got = jnp.concatenate(parts, 1)
    np.testing.assert_allclose(got[0], full[0], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(
      got[1, 3:], full[1, : T - 3], rtol=2e-5, atol=2e-6
    )


def check_packing(module):
  """Two documents in a row give what each gives alone."""
  x = inputs()
  cut = 6
  segments = np.where(np.arange(T) < cut, 1, 2)[None].repeat(2, 0)
  positions = np.where(np.arange(T) < cut, np.arange(T), np.arange(T) - cut)
  packed, _ = apply(module, x, context(segments, positions[None].repeat(2, 0)))
  for part in (slice(0, cut), slice(cut, T)):
    size = part.stop - part.start
    alone, _ = apply(module, x[:, part], context(jnp.ones((2, size))))
    np.testing.assert_allclose(packed[:, part], alone, rtol=2e-5, atol=2e-6)


CHECKS = [check_causal, check_decode, check_packing]


@pytest.mark.parametrize('check', CHECKS, ids=lambda f: f.__name__)
def test_mixer_keeps_the_contract_of(check, mixer):
  if check is check_causal and not mixer.causal:
    pytest.skip('not causal')
  check(mixer)


@pytest.mark.parametrize('check', CHECKS, ids=lambda f: f.__name__)
def test_block_keeps_the_contract_of(check, block):
  check(AsMixer(block))


@pytest.mark.parametrize('check', CHECKS, ids=lambda f: f.__name__)
def test_gated_attention_keeps_the_contract_of(check, gate):
  # As many heads as a router of the suite has experts, and four shared ones.
  check(Attention(heads=12, kv_heads=2, head_dim=4, gate=gate))


# Attention.


def naive(
  p, x, segments, positions, heads, kv_heads, window, qk_norm, theta, frac
):
  """Softmax attention token by token, in float64."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
  x = np.asarray(x, np.float64)
  size = p['query']['kernel'].shape[-1]

  def norm(v, scale):
    return v / np.sqrt((v**2).mean() + 1e-6) * scale

  def turn(v, position):
    half = round(size * frac) // 2
    out = v.copy()
    for i in range(half):
      angle = position * theta ** (-i / half)
      c, s = np.cos(angle), np.sin(angle)
      out[i] = v[i] * c - v[i + half] * s
      out[i + half] = v[i + half] * c + v[i] * s
    return out

  out = np.zeros(x.shape)
  for b in range(x.shape[0]):
    for h in range(heads):
      g = h // (heads // kv_heads)
      for t in range(x.shape[1]):
        q = x[b, t] @ p['query']['kernel'][:, h]
        q = norm(q, p['query_norm']['scale']) if qk_norm else q
        q = turn(q, positions[b, t])
        scores, values = [], []
        for s in range(t + 1):
          if segments[b, s] != segments[b, t]:
            continue
          if window is not None and t - s >= window:
            continue
          k = x[b, s] @ p['key']['kernel'][:, g]
          k = norm(k, p['key_norm']['scale']) if qk_norm else k
          scores.append(q @ turn(k, positions[b, s]) / np.sqrt(size))
          values.append(x[b, s] @ p['value']['kernel'][:, g])
        weights = np.exp(np.array(scores) - max(scores))
        weights /= weights.sum()
        out[b, t] += (weights @ np.array(values)) @ p['out']['kernel'][h]
  return out


@pytest.mark.parametrize(
  'kv_heads,window,qk_norm,head_dim,frac',
  [
    (2, None, True, None, 1.0),
    (1, 3, True, 6, 2 / 3),
    (4, 1, False, None, 0.0),
  ],
)
def test_attention_equals_a_loop_in_float64(
  kv_heads, window, qk_norm, head_dim, frac
):
  module = Attention(
    heads=4,
    kv_heads=kv_heads,
    window=window,
    qk_norm=qk_norm,
    head_dim=head_dim,
    rope_theta=100.0,
    rope_frac=frac,
  )
  segments = np.array([[1] * 4 + [2] * 6, [1] * 8 + [0] * 2])
  positions = np.array([[*range(4), *range(6)], [*range(8), 0, 0]])
  got, _ = apply(module, inputs(), context(segments, positions))
  want = naive(
    variables(module)['params'],
    inputs(),
    segments,
    positions,
    heads=4,
    kv_heads=kv_heads,
    window=window,
    qk_norm=qk_norm,
    theta=100.0,
    frac=frac,
  )
  real = segments > 0
  np.testing.assert_allclose(got[real], want[real], rtol=2e-5, atol=2e-6)
  assert np.isfinite(got).all()


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(heads=4, kv_heads=3), 'kv_heads=3 does not divide heads=4'),
    (dict(heads=3, kv_heads=3), 'heads=3 does not divide width=16'),
    (dict(heads=16, kv_heads=16), 'head_dim=1 is odd'),
  ],
)
def test_attention_refuses_heads_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    Attention(**fields).init_state(1, 1, D, 'float32')


@pytest.mark.parametrize('window', [None, 1, 5, 64])
def test_attention_flops_count_the_keys_that_are_seen(window):
  module = Attention(heads=4, kv_heads=2, window=window)
  length = 32
  size = 4
  seen = np.mean([min(t + 1, window or length) for t in range(length)])
  matrices = 2 * 16 * size * (4 + 2 + 2 + 4)
  exact = matrices + 2 * 2 * size * 4 * seen
  assert module.flops(16, length) == pytest.approx(exact, rel=1e-12)
