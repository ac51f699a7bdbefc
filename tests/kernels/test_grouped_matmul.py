"""The grouped matrix product against a float64 loop over groups."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.grouped_matmul import tiles
from pallas_kernels.grouped_matmul.api import grouped_matmul
from pallas_kernels.grouped_matmul.shapes import SMALL, Shape
from tests.kernels.oracle import assert_close, product, product_inputs

IMPLEMENTATIONS = [None, 'ragged_dot', 'reference']


@functools.partial(jax.jit, static_argnums=(4, 5))
def _results(x, w, sizes, dy, implementation=None, wrap=lambda f: f):
  f = functools.partial(
    grouped_matmul, sizes_E=sizes, implementation=implementation
  )
  return _pulled(wrap(f), x, w, dy)


def _pulled(f, x, w, dy):
  y, pull = jax.vjp(f, x, w)
  return y, *pull(dy)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('name', list(SMALL))
def test_outputs_and_gradients_equal_the_loop(name, implementation):
  inputs = product_inputs(SMALL[name])
  got = _results(*inputs, implementation)
  assert_close(got, product(*inputs), 1e-5)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('name', ['odd', 'rows past the end'])
def test_bf16_is_close_to_the_loop(name, implementation):
  inputs = product_inputs(SMALL[name], jnp.bfloat16)
  got = _results(*inputs, implementation)
  assert all(a.dtype == jnp.bfloat16 for a in got)
  assert_close(got, product(*inputs), 2e-2)


@given(cuts=st.lists(st.integers(0, 1200), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_any_sizes_equal_the_loop(cuts):
  sizes = np.diff(sorted(cuts), prepend=0)
  inputs = product_inputs(Shape(1200, 3, 2, tuple(sizes)))
  assert_close(_results(*inputs), product(*inputs), 1e-5)


def test_the_name_is_what_cpu_gets():
  inputs = product_inputs(SMALL['odd'])
  for a, b in zip(
    _results(*inputs, None), _results(*inputs, 'tiles'), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_without_jit_equals_the_loop():
  inputs = product_inputs(SMALL['smoke'])
  got = _results.__wrapped__(*inputs)
  assert_close(got, product(*inputs), 1e-5)


def test_under_checkpoint_equals_the_loop():
  inputs = product_inputs(SMALL['rows past the end'])
  got = _results(*inputs, None, jax.checkpoint)
  assert_close(got, product(*inputs), 1e-5)


def test_scan_over_matrices_equals_the_loop():
  x, w, sizes, dy = product_inputs(SMALL['empty groups'], poison=False)
  w = jnp.stack([w, 2 * w])

  def f(x, w):
    def step(s, w):
      return s + grouped_matmul(x, w, sizes), None

    return jax.lax.scan(step, jnp.zeros(dy.shape), w)[0]

  y, dx, dw = jax.jit(lambda x, w: _pulled(f, x, w, dy))(x, w)
  want_y, want_dx, want_dw = product(x, w[0], sizes, dy)
  want = 3 * want_y, 3 * want_dx, np.stack([want_dw, want_dw])
  assert_close((y, dx, dw), want, 1e-5)


def test_vmap_over_rows_and_sizes_equals_the_loop():
  x, w, sizes, dy = product_inputs(SMALL['smoke'])
  xs, dys = jnp.stack([x, 2 * x]), jnp.stack([dy, 3 * dy])
  zs = jnp.stack([sizes, jnp.array([0, 9, 0, 2], jnp.int32)])

  def run(x, z, dy):
    return _pulled(lambda x, w: grouped_matmul(x, w, z), x, w, dy)

  got = jax.jit(jax.vmap(run))(xs, zs, dys)
  for i in range(2):
    want = product(xs[i], w, zs[i], dys[i])
    assert_close(tuple(a[i] for a in got), want, 1e-5)


@pytest.mark.parametrize('rows', [1, 63, 64, 65, 512, 513, 5000])
def test_tiles_cover_every_row_once_and_waste_less_than_a_tile(rows):
  rng = np.random.default_rng(rows)
  sizes = rng.multinomial(rows, rng.dirichlet(np.full(7, 0.3)))
  plan = jax.jit(tiles.cut, static_argnums=1)(jnp.array(sizes, jnp.int32), rows)
  visits = np.zeros(rows, int)
  padded, begin = 0, 0
  for size, end in zip(plan.row_counts, np.asarray(plan.ends), strict=True):
    for j in range(begin, end):
      start, count = int(plan.start[j]), int(plan.count[j])
      assert 0 < count <= size
      visits[start : start + count] += 1
      group = np.repeat(np.arange(7), sizes)[start : start + count]
      assert (group == int(plan.group[j])).all()
      padded += size
    begin = end
  assert (visits == 1).all()
  assert padded - rows < tiles.STEP_ROWS * (sizes > 0).sum()


def test_tpu_gets_its_own_kernels():
  x, w, sizes, _ = product_inputs(SMALL['smoke'])
  traced = jax.jit(grouped_matmul).trace(x, w, sizes)
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert 'grouped_matmul_nn' in text
  assert 'ragged_dot' not in text
  assert 'grouped_matmul_nn' not in traced.lower().as_text()


@pytest.mark.skipif(
  jax.__version_info__ > (0, 10, 2)
  and importlib.util.find_spec('jax_cuda12_plugin') is None,
  reason='after 0.10.2, lowering for CUDA compiles Triton: needs the plugin',
)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_cuda_gets_its_own_kernels(dtype):
  traced = _results.trace(*product_inputs(SMALL['smoke'], dtype))
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert 'ragged_dot' not in text
  for name in ('nn', 'nt', 'tn'):
    assert f'"grouped_{name}"' in text


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(x=jnp.zeros((4, 3))), 'must share D'),
    (dict(sizes=jnp.zeros(3, jnp.int32)), 'must share E'),
    (dict(x=jnp.zeros((4, 2), jnp.bfloat16)), 'rows are bfloat16'),
    (dict(sizes=jnp.zeros(2)), 'sizes are float32'),
    (dict(x=jnp.zeros(4)), r'rows \[R, D\]'),
    (dict(implementation='quick'), "implementation='quick' is unknown"),
  ],
)
def test_misfits_are_refused(change, message):
  args = dict(
    x=jnp.zeros((4, 2)),
    w=jnp.zeros((2, 2, 5)),
    sizes=jnp.zeros(2, jnp.int32),
    implementation=None,
  )
  args |= change
  with pytest.raises(ValueError, match=message):
    grouped_matmul(
      args['x'], args['w'], args['sizes'], implementation=args['implementation']
    )
