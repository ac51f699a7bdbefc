"""Hand-written gradients against what jax derives from the plain equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.nn import attend
from moejax.nn.norm import rms_norm


def _normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def _plain_norm(x, scale):
  return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def _plain_attention(q, k, v, mask):
  each = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(a, each, axis=2) for a in (k, v))
  logits = jnp.einsum('bthd,bshd->bhts', q, k) / np.sqrt(q.shape[-1])
  logits = jnp.where(mask[:, None], logits, -1e30)
  return jnp.einsum('bhts,bshd->bthd', jax.nn.softmax(logits), v)


def _assert_same(ours, plain, args, *, atol):
  weight = _normal(9, *jax.eval_shape(plain, *args).shape)

  def both_ways(f):
    def total(*args):
      y = f(*args)
      return jnp.sum(y * weight), y

    every = tuple(range(len(args)))
    grads, y = jax.jit(jax.grad(total, every, has_aux=True))(*args)
    return y, grads

  (y, got), (plain_y, want) = both_ways(ours), both_ways(plain)
  np.testing.assert_allclose(y, plain_y, atol=atol, rtol=1e-5)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


@pytest.mark.parametrize('shape', [(7,), (3, 5, 16)])
def test_rms_norm_equals_its_equation(shape):
  args = _normal(0, *shape), 1 + _normal(1, shape[-1])
  _assert_same(lambda *a: rms_norm(*a, 1e-6), _plain_norm, args, atol=1e-5)


def test_rms_norm_of_a_zero_row_is_zero_with_a_finite_gradient():
  @jax.jit
  def both_ways(x, dy):
    y, pull = jax.vjp(lambda x: rms_norm(x, jnp.ones(8), 1e-6), x)
    return y, pull(dy)[0]

  y, dx = both_ways(np.zeros((2, 8), np.float32), np.ones((2, 8), np.float32))
  assert not y.any()
  assert np.isfinite(dx).all()


@pytest.mark.parametrize('heads, groups', [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize('length, keys', [(9, 9), (1, 12)])
def test_attention_equals_its_equation(heads, groups, length, keys):
  q = _normal(0, 2, length, heads, 8)
  k, v = _normal(1, 2, keys, groups, 8), _normal(2, 2, keys, groups, 8)
  behind = np.arange(length)[:, None] + keys - length - np.arange(keys)
  mask = np.broadcast_to(behind >= 0, (2, length, keys))
  _assert_same(
    lambda *a: attend(*a, mask),
    lambda *a: _plain_attention(*a, mask),
    (q, k, v),
    atol=2e-5,
  )


def test_attention_stays_finite_at_extreme_logits():
  q, k = 1e4 * _normal(0, 1, 6, 2, 8), 1e4 * _normal(1, 1, 6, 2, 8)
  mask = np.tril(np.ones((1, 6, 6), bool))

  @jax.jit
  def both_ways(*args):
    y, pull = jax.vjp(lambda *a: attend(*a, mask), *args)
    return y, *pull(y)

  found = both_ways(q, k, _normal(2, 1, 6, 2, 8))
  assert all(np.isfinite(a).all() for a in found)


def test_bf16_attention_returns_bf16_near_the_f32_result():
  args = [_normal(i, 2, 16, 4, 8) for i in range(3)]
  mask = np.tril(np.ones((2, 16, 16), bool))
  rounded = [a.astype(jnp.bfloat16) for a in args]
  y = jax.jit(attend)(*rounded, mask)
  assert y.dtype == jnp.bfloat16
  want = jax.jit(_plain_attention)(*args, mask)
  np.testing.assert_allclose(y.astype(np.float32), want, atol=0.06)
