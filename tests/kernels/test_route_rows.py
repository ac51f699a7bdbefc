"""Tokens to rows in expert order, and back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.route import pallas_gpu, reference
from pallas_kernels.route.api import permutation
from pallas_kernels.route.rows import combine, gather_rows

SHAPES = [(1, 8, 1), (37, 100, 3), (19, 1030, 2)]  # tokens, width, choices
EXPERTS = 5


def _inputs(n, d, k, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  ids = rng.integers(0, EXPERTS + 1, (n, k))  # 5 is "no expert"
  ids[0, 0] = 2
  plan = permutation(jnp.asarray(ids, jnp.int32), EXPERTS)
  sizes = [(n * k, d), (n, k), (n, d)]
  y, weights, dy = (rng.normal(size=s) for s in sizes)
  y[int(plan.sizes_E.sum()) :] = np.nan  # rows of no expert
  y, dy = jnp.asarray(y, dtype), jnp.asarray(dy, dtype)
  return ids, plan, y, jnp.asarray(weights, jnp.float32), dy


def _oracle(ids, y, weights, dy):
  """A loop over experts and pairs, in float64."""
  y, weights, dy = (np.asarray(a, np.float64) for a in (y, weights, dy))
  pairs = [
    (n, k)
    for e in range(EXPERTS)
    for n in range(len(ids))
    for k in range(ids.shape[1])
    if ids[n, k] == e
  ]
  total, dweights = np.zeros_like(dy), np.zeros_like(weights)
  dy_rows = np.zeros_like(y)
  for row, (n, k) in enumerate(pairs):
    total[n] += weights[n, k] * y[row]
    dy_rows[row] = weights[n, k] * dy[n]
    dweights[n, k] = dy[n] @ y[row]
  return total, dy_rows, dweights


def _assert_close(got, want, tolerance):
  for a, b in zip(got, want, strict=True):
    scale = max(1.0, np.abs(b).max())
    a = np.asarray(a, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('implementation', ['slots', 'reference'])
@pytest.mark.parametrize('shape', SHAPES)
def test_combine_and_its_gradient_equal_a_loop(shape, implementation):
  ids, plan, y, weights, dy = _inputs(*shape)

  @jax.jit
  def run(y, weights, dy):
    f = functools.partial(combine, plan=plan, implementation=implementation)
    out, pull = jax.vjp(f, y, weights)
    return out, *pull(dy)

  got = run(y, weights, dy)
  _assert_close(got, _oracle(ids, y, weights, dy), 1e-5)


@pytest.mark.parametrize(
  'dtype,tolerance', [('float32', 1e-5), ('bfloat16', 2e-2)]
)
@pytest.mark.parametrize('shape', SHAPES)
def test_the_kernels_equal_a_loop(shape, dtype, tolerance):
  ids, plan, y, weights, dy = _inputs(*shape, dtype)
  call = functools.partial
  run = jax.jit(call(pallas_gpu.combine, interpret=True))
  pull = jax.jit(call(pallas_gpu.combine_gradient, interpret=True))
  got = run(y, weights, plan), *pull(y, weights, plan, dy)
  assert [a.dtype for a in got] == [dtype, dtype, jnp.float32]
  _assert_close(got, _oracle(ids, y, weights, dy), tolerance)


def test_bf16_is_summed_in_f32():
  ids, plan, y, weights, dy = _inputs(37, 100, 3, jnp.bfloat16)
  out, pull = jax.vjp(functools.partial(combine, plan=plan), y, weights)
  got = out, *pull(dy)
  assert [a.dtype for a in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
  _assert_close(got, _oracle(ids, y, weights, dy), 2e-2)


def test_gathered_rows_are_tokens_and_their_gradients_are_summed():
  ids, plan, _, _, x = _inputs(37, 100, 3)
  dx_rows = np.random.default_rng(1).normal(size=(111, 100)).astype(np.float32)
  live = int(plan.sizes_E.sum())
  dx_rows[live:] = np.nan

  @jax.jit
  def run(x, dx_rows):
    rows, pull = jax.vjp(functools.partial(gather_rows, plan=plan), x)
    return rows, *pull(dx_rows)

  rows, dx = run(x, dx_rows)
  tokens = [
    n
    for e in range(EXPERTS)
    for n, row in enumerate(ids)
    for i in row
    if i == e
  ]
  np.testing.assert_array_equal(rows[:live], np.asarray(x)[tokens])
  want = np.zeros((37, 100))
  np.add.at(want, tokens, dx_rows[:live].astype(np.float64))
  np.testing.assert_allclose(dx, want, rtol=1e-5, atol=1e-5)


def test_the_dispatcher_is_the_identity_and_so_is_its_gradient():
  n, k = 50, 3
  rng = np.random.default_rng(0)
  ids = jnp.asarray(rng.integers(0, EXPERTS, (n, k)), jnp.int32)
  x, dy = (jnp.asarray(rng.normal(size=(n, 6)), jnp.float32) for _ in range(2))

  @jax.jit
  def run(x, dy):
    def there_and_back(x):
      plan = permutation(ids, EXPERTS)
      return combine(gather_rows(x, plan), jnp.full((n, k), 1 / k), plan)

    y, pull = jax.vjp(there_and_back, x)
    return y, *pull(dy)

  y, dx = run(x, dy)
  np.testing.assert_allclose(y, x, rtol=1e-6)
  np.testing.assert_allclose(dx, dy, rtol=1e-6)


def test_the_backward_pass_of_gathered_rows_holds_no_scatter():
  _, plan, _, _, x = _inputs(37, 100, 3)
  pull = jax.grad(lambda x: gather_rows(x, plan).sum())
  assert 'scatter' not in jax.jit(pull).lower(x).as_text()


def test_shapes_of_another_plan_are_refused():
  _, plan, y, weights, x = _inputs(37, 100, 3)
  with pytest.raises(ValueError, match=r'ids \(37, 3\) goes with shapes'):
    gather_rows(x[1:], plan)
  with pytest.raises(ValueError, match=r'combine: .* not \(\(110, 100\)'):
    combine(y[1:], weights, plan)
  with pytest.raises(ValueError, match="implementation='quick' is unknown"):
    combine(y, weights, plan, implementation='quick')


def test_definitions_treat_all_rows_alike_when_all_are_live():
  ids = jnp.zeros((4, 2), jnp.int32)
  plan = permutation(ids, 1)
  y = jnp.arange(16.0).reshape(8, 2)
  got = reference.combine(y, jnp.ones((4, 2)), plan)
  np.testing.assert_array_equal(got, y.reshape(4, 2, 2).sum(1))
