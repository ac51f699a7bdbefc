"""The grouped matrix product against a float64 loop over groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.grouped_matmul import tiles
from pallas_kernels.grouped_matmul.api import grouped_matmul
from pallas_kernels.grouped_matmul.shapes import SMALL, Shape

IMPLEMENTATIONS = [None, 'ragged_dot', 'reference']
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


def _inputs(shape: Shape, dtype=jnp.float32, poison=True):
  """Rows, matrices, sizes and an output gradient; dead rows hold NaN."""
  draw = np.random.default_rng(0).normal
  x = draw(size=(shape.rows, shape.d))
  w = draw(size=(len(shape.sizes), shape.d, shape.f))
  dy = draw(size=(shape.rows, shape.f))
  if poison:
    x[sum(shape.sizes) :] = np.nan
    dy[sum(shape.sizes) :] = np.nan
  sizes = jnp.array(shape.sizes, jnp.int32)
  return *(jnp.asarray(a, dtype) for a in (x, w)), sizes, jnp.asarray(dy, dtype)


def _oracle(x, w, sizes, dy):
  """y, dx and dw by a loop over groups in float64."""
  x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
  y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
  start = 0
  for e, size in enumerate(np.asarray(sizes)):
    own = slice(start, start + size)
    y[own] = x[own] @ w[e]
    dx[own] = dy[own] @ w[e].T
    dw[e] = x[own].T @ dy[own]
    start += size
  return y, dx, dw


@functools.partial(jax.jit, static_argnums=(4, 5))
def _results(x, w, sizes, dy, implementation=None, wrap=lambda f: f):
  f = functools.partial(
    grouped_matmul, sizes_E=sizes, implementation=implementation
  )
  return _pulled(wrap(f), x, w, dy)


def _pulled(f, x, w, dy):
  y, pull = jax.vjp(f, x, w)
  return y, *pull(dy)


def _assert_close(got, want, tolerance):
  for a, b in zip(got, want, strict=True):
    scale = max(1.0, np.abs(b).max(initial=0))
    a = np.asarray(a, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('name', list(SMALL))
def test_outputs_and_gradients_equal_the_loop(name, implementation):
  inputs = _inputs(SMALL[name])
  got = _results(*inputs, implementation)
  _assert_close(got, _oracle(*inputs), 1e-5)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('name', ['odd', 'rows past the end'])
def test_bf16_is_close_to_the_loop(name, implementation):
  inputs = _inputs(SMALL[name], jnp.bfloat16)
  got = _results(*inputs, implementation)
  assert all(a.dtype == jnp.bfloat16 for a in got)
  _assert_close(got, _oracle(*inputs), 2e-2)


@given(cuts=st.lists(st.integers(0, 1200), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_any_sizes_equal_the_loop(cuts):
  sizes = np.diff(sorted(cuts), prepend=0)
  inputs = _inputs(Shape(1200, 3, 2, tuple(sizes)))
  _assert_close(_results(*inputs), _oracle(*inputs), 1e-5)


def test_the_name_is_what_cpu_gets():
  inputs = _inputs(SMALL['odd'])
  for a, b in zip(
    _results(*inputs, None), _results(*inputs, 'tiles'), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_without_jit_equals_the_loop():
  inputs = _inputs(SMALL['smoke'])
  got = _results.__wrapped__(*inputs)
  _assert_close(got, _oracle(*inputs), 1e-5)


def test_under_checkpoint_equals_the_loop():
  inputs = _inputs(SMALL['rows past the end'])
  got = _results(*inputs, None, jax.checkpoint)
  _assert_close(got, _oracle(*inputs), 1e-5)


def test_scan_over_matrices_equals_the_loop():
  x, w, sizes, dy = _inputs(SMALL['empty groups'], poison=False)
  w = jnp.stack([w, 2 * w])

  def f(x, w):
    def step(s, w):
      return s + grouped_matmul(x, w, sizes), None

    return jax.lax.scan(step, jnp.zeros(dy.shape), w)[0]

  y, dx, dw = jax.jit(lambda x, w: _pulled(f, x, w, dy))(x, w)
  want_y, want_dx, want_dw = _oracle(x, w[0], sizes, dy)
  want = 3 * want_y, 3 * want_dx, np.stack([want_dw, want_dw])
  _assert_close((y, dx, dw), want, 1e-5)


def test_vmap_over_rows_and_sizes_equals_the_loop():
  x, w, sizes, dy = _inputs(SMALL['smoke'])
  xs, dys = jnp.stack([x, 2 * x]), jnp.stack([dy, 3 * dy])
  zs = jnp.stack([sizes, jnp.array([0, 9, 0, 2], jnp.int32)])

  def run(x, z, dy):
    return _pulled(lambda x, w: grouped_matmul(x, w, z), x, w, dy)

  got = jax.jit(jax.vmap(run))(xs, zs, dys)
  for i in range(2):
    want = _oracle(xs[i], w, zs[i], dys[i])
    _assert_close([a[i] for a in got], want, 1e-5)


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


def test_other_platforms_get_their_kernels_or_the_library():
  x, w, sizes, _ = _inputs(SMALL['smoke'])
  traced = jax.jit(grouped_matmul).trace(x, w, sizes)

  def lowered(platform):
    return traced.lower(lowering_platforms=(platform,)).as_text()

  assert 'ragged_dot' in lowered('cuda')
  assert 'grouped_matmul_nn' in lowered('tpu')
  assert 'ragged_dot' not in lowered('tpu')
  assert 'ragged_dot' not in lowered('cpu')


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
