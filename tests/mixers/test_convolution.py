"""The short convolution against loops in float64, and its gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moejax.mixers.convolution import ShortConvolution, convolve
from moejax.nn import activations
from moejax.types import Context

B, T, H, K, W = 2, 9, 2, 3, 4
SEGMENTS = np.array([[1] * 5 + [2] * 4, [0] * 2 + [1] * 7])
POSITIONS = np.array([[*range(5), *range(4)], [0, 0, *range(7)]])


def context(segments, positions):
  segments = jnp.asarray(segments, jnp.int32)
  positions = jnp.asarray(positions, jnp.int32)
  return Context(jnp.zeros_like(segments), positions, segments)


def naive(x, kernel, bias, segments):
  """Token by token and channel by channel, in float64."""
  x, kernel, bias = (np.asarray(a, np.float64) for a in (x, kernel, bias))
  y = np.zeros(x.shape)
  for b, t in np.ndindex(x.shape[:2]):
    total = bias.copy()
    for back in range(W):
      if t >= back and segments[b, t - back] == segments[b, t]:
        total += kernel[W - 1 - back] * x[b, t - back]
    y[b, t] = total / (1 + np.exp(-total))
  return y


def draw(seed=0):
  rng = np.random.default_rng(seed)
  shapes = (B, T, H, K), (W, H, K), (H, K)
  return [rng.normal(size=s).astype(np.float32) for s in shapes]


def module_and_params(kernel, bias):
  return ShortConvolution(W, bias=True), {
    'params': {'kernel': kernel, 'bias': bias}
  }


def test_it_sees_its_document_only():
  x, kernel, bias = draw()
  module, params = module_and_params(kernel, bias)
  y, none = jax.jit(module.apply)(params, x, context(SEGMENTS, POSITIONS))
  assert none is None
  real = SEGMENTS > 0
  want = naive(x, kernel, bias, SEGMENTS)
  np.testing.assert_allclose(y[real], want[real], rtol=1e-5, atol=1e-6)


def test_pieces_of_any_size_with_padding_behind_them_give_the_whole():
  x, kernel, bias = draw(1)
  module, params = module_and_params(kernel, bias)
  want = naive(x, kernel, bias, np.ones((B, T)))
  recent = jnp.zeros((B, W - 1, H, K))
  call = jax.jit(module.apply)
  read = [0, 0]
  for sizes in ((4, 3), (0, 1), (2, 1), (1, 0), (2, 4)):
    piece = np.full((B, 4, H, K), 1e3, np.float32)
    segments = (np.arange(4) < np.array(sizes)[:, None]).astype(int)
    positions = segments * (np.array(read)[:, None] + np.arange(4))
    for b, size in enumerate(sizes):
      piece[b, :size] = x[b, read[b] : read[b] + size]
    y, recent = call(params, piece, context(segments, positions), recent)
    for b, size in enumerate(sizes):
      own = want[b, read[b] : read[b] + size]
      np.testing.assert_allclose(y[b, :size], own, rtol=1e-5, atol=1e-6)
      read[b] += size
  assert read == [T, T]


def test_the_gradient_equals_that_of_a_gather():
  x, kernel, bias = draw(2)
  x = np.pad(x, ((0, 0), (W - 1, 0), (0, 0), (0, 0))).reshape(B, T + W - 1, -1)
  kernel, bias = kernel.reshape(W, -1), bias.reshape(-1)
  weight = np.random.default_rng(3).normal(size=(B, T, H * K))

  def ours(x, kernel, bias):
    y = convolve(x, kernel, bias, jnp.asarray(POSITIONS), activations.silu)
    return (y * weight).sum()

  def gathered(x, kernel, bias):
    place = np.arange(T)[:, None] + np.arange(W)
    reach = np.arange(W - 1, -1, -1)
    seen = POSITIONS[:, :, None] >= reach
    sums = jnp.einsum('btwc,btw,wc->btc', x[:, place], seen * 1.0, kernel)
    return (jax.nn.silu(sums + bias) * weight).sum()

  got = jax.jit(jax.grad(ours, (0, 1, 2)))(x, kernel, bias)
  want = jax.jit(jax.grad(gathered, (0, 1, 2)))(x, kernel, bias)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_gradient_keeps_no_copy_for_each_tap():
  x, kernel, bias = (jnp.asarray(a) for a in draw())
  x = jnp.pad(x.reshape(B, T, -1), ((0, 0), (W - 1, 0), (0, 0)))
  args = x, kernel.reshape(W, -1), bias.reshape(-1)
  _, pull = jax.vjp(
    lambda *a: convolve(*a, jnp.asarray(POSITIONS), activations.silu), *args
  )
  kept = sum(leaf.size for leaf in jax.tree.leaves(pull))
  assert kept <= sum(a.size for a in args) + POSITIONS.size


def test_filters_start_uniform_within_the_root_of_the_size():
  module = ShortConvolution(W, bias=True)
  x = jnp.zeros((1, 1, 40, 50))
  ctx = context(np.ones((1, 1)), np.zeros((1, 1)))
  params = nn.unbox(jax.jit(module.init)(jax.random.key(0), x, ctx))['params']
  for value in params.values():
    assert float(jnp.abs(value).max()) <= 0.5
    np.testing.assert_allclose(value.std(), 0.5 / 3**0.5, rtol=0.03)
