"""Memories: `(x_BTD, ctx) -> y_BTD`, each token for itself."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.types import Context

# The module itself, on other inputs: no claim on machine code.
pytestmark = pytest.mark.usefixtures('quick_compilation')

B, T, D = 2, 6, 16
SEGMENTS = np.array([[1] * 6, [1, 1, 1, 2, 0, 0]], np.int32)


def context():
  segments = jnp.asarray(SEGMENTS)
  return Context(jnp.zeros_like(segments), jnp.zeros_like(segments), segments)


def inputs(seed=0):
  return np.asarray(jax.random.normal(jax.random.key(seed), (B, T, D)))


@functools.cache
def made(module):
  """Variables with other numbers than the initial ones."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), inputs(), context())
  shapes = {k: v for k, v in shapes.items() if k in ('params', 'balance')}
  shapes = jax.tree.map(
    lambda a: a.value if isinstance(a, nn.LogicallyPartitioned) else a,
    shapes,
    is_leaf=lambda a: isinstance(a, nn.LogicallyPartitioned),
  )
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.5 + 0.1, a.dtype), shapes
  )


@functools.partial(jax.jit, static_argnums=0)
def run(module, variables, x, valid):
  """y, and the gradients of parameters and x of what is not padding."""
  rest = {k: v for k, v in variables.items() if k != 'params'}
  ctx = context().replace(segments_BT=valid)

  def f(params, x):
    y = module.apply({'params': params} | rest, x, ctx)
    return jnp.where(valid[..., None] > 0, y, 0)

  y, pull = jax.vjp(f, variables['params'], x)
  return y, *pull(jnp.cos(y))


def test_a_memory_keeps_the_shape_and_all_of_it_learns(memory):
  y, dparams, dx = run(memory, made(memory), inputs(), SEGMENTS)
  assert y.shape == (B, T, D)
  for path, g in jax.tree_util.tree_leaves_with_path((y, dparams, dx)):
    assert np.isfinite(g).all(), path
    assert np.abs(g).max() > 0, path


def test_a_token_of_a_memory_sees_itself_alone(memory):
  """So it is causal, packs, and decodes as it trains."""
  y, dparams, dx = run(memory, made(memory), inputs(), SEGMENTS)
  order = np.random.default_rng(1).permutation(T)
  got = run(memory, made(memory), inputs()[:, order], SEGMENTS[:, order])
  np.testing.assert_allclose(got[0], y[:, order], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(got[2], dx[:, order], rtol=1e-4, atol=1e-4)


def test_padding_moves_nothing_in_a_memory(memory):
  first = run(memory, made(memory), inputs(), SEGMENTS)
  other = np.where(SEGMENTS[..., None] > 0, inputs(), inputs(seed=3))
  second = run(memory, made(memory), other, SEGMENTS)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    first[:2],
    second[:2],
  )
  assert (np.asarray(second[2])[SEGMENTS == 0] == 0).all()


def test_a_memory_keeps_the_dtype_and_counts_its_work(memory):
  x = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16)
  y = jax.eval_shape(memory.apply, made(memory), x, context())
  assert y.dtype == jnp.bfloat16
  assert memory.flops(D) > 0
  params = made(memory)['params']
  paths = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  for path, frac in getattr(memory, 'active_fracs', dict)().items():
    assert path in paths and 0 < frac < 1
