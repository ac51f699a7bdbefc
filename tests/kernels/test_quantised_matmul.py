"""The grouped product of quantised arrays against float64 loops."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix

from moejax.rows import Ragged
from pallas_kernels.grouped_matmul.api import grouped_matmul
from pallas_kernels.grouped_matmul.quantised import (
  quantise,
  quantised_training,
)
from pallas_kernels.grouped_matmul.shapes import SMALL, Shape

FP8 = 'float8_e4m3fn'
# Dtypes of rows (None: f32) and of matrices.
KINDS = ((None, 'int8'), (None, FP8), ('int8', 'int8'), (FP8, FP8))
CASES = [
  *((n, None) for n in ('one row', 'empty groups', 'odd', 'rows past the end')),
  ('odd', 'ragged_dot'),
  ('rows past the end', 'ragged_dot'),
  ('rows past the end', 'reference'),
]


def inputs(shape, dtype=np.float32):
  """Rows, matrices, sizes and an output gradient; dead rows hold NaN."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(shape.rows, shape.d))
  w = rng.normal(size=(len(shape.sizes), shape.d, shape.f))
  # Groups and columns of very different size, as one scale cannot hold.
  w *= 10 ** rng.uniform(-2, 2, (len(shape.sizes), 1, shape.f))
  dy = rng.normal(size=(shape.rows, shape.f))
  x[sum(shape.sizes) :] = np.nan
  dy[sum(shape.sizes) :] = np.nan
  sizes = jnp.array(shape.sizes, jnp.int32)
  return (
    jnp.asarray(x, dtype),
    jnp.asarray(w, dtype),
    sizes,
    jnp.asarray(dy, dtype),
  )


def wide(a):
  """The float64 values of an array, quantised or not."""
  if isinstance(a, qwix.QArray):
    return np.asarray(a.qvalue, np.float64) * np.asarray(a.scale, np.float64)
  return np.asarray(a, np.float64)


def loop(x, w, sizes, dy):
  """y, dx and dw of the dequantised arrays, group by group."""
  x, w, dy = map(wide, (x, w, dy))
  y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
  start = 0
  for e, size in enumerate(np.asarray(sizes)):
    own = slice(start, start + size)
    y[own] = x[own] @ w[e]
    dx[own] = dy[own] @ w[e].T
    dw[e] = x[own].T @ dy[own]
    start += size
  return y, dx, dw


def assert_close(got, want, tolerance):
  scale = np.abs(want).max(initial=1e-30)
  np.testing.assert_allclose(wide(got), want, rtol=0, atol=tolerance * scale)


@functools.partial(jax.jit, static_argnums=4)
def results(x, w, sizes, dy, implementation):
  """For each kind: the operands, y, and what the rows get."""
  found = []
  for rows, matrices in KINDS:
    q = quantise(w, matrices, (0, 2))
    if rows:
      a = quantise(x, rows, (0,))
      y = grouped_matmul(a, q, sizes, implementation=implementation)
      found.append((a, q, y, None))
    else:
      y, pull = jax.vjp(
        lambda x, q=q: grouped_matmul(
          x, q, sizes, implementation=implementation
        ),
        x,
      )
      found.append((x, q, y, pull(dy)[0]))
  return found


@pytest.mark.parametrize('name,implementation', CASES)
def test_products_equal_the_loop_over_dequantised_arrays(name, implementation):
  x, w, sizes, dy = inputs(SMALL[name])
  for a, q, y, dx in results(x, w, sizes, dy, implementation):
    want_y, want_dx, _ = loop(a, q, sizes, dy)
    assert y.dtype == jnp.float32
    assert_close(y, want_y, 1e-5)
    if dx is not None:
      assert_close(dx, want_dx, 1e-5)


@functools.partial(jax.jit, static_argnums=(4, 5))
def trained(x, w, sizes, dy, kind, implementation=None):
  rows, matrices = kind
  y, pull = jax.vjp(
    lambda x, w: quantised_training(
      x,
      w,
      sizes,
      rows=rows,
      matrices=matrices,
      implementation=implementation,
    ),
    x,
    w,
  )
  return y, *pull(dy)


@pytest.mark.parametrize(
  'kind,dtype',
  [
    (KINDS[0], np.float32),
    (KINDS[1], jnp.bfloat16),
    pytest.param(KINDS[2], np.float32, marks=pytest.mark.slow),
    pytest.param(KINDS[3], jnp.bfloat16, marks=pytest.mark.slow),
  ],
)
def test_training_is_the_loop_over_dequantised_arrays_with_gradients(
  kind, dtype
):
  x, w, sizes, dy = inputs(SMALL['rows past the end'], dtype)
  live = int(sizes.sum())
  a = x.at[live:].set(0)
  a = quantise(a, kind[0], (0,)) if kind[0] else a
  want = loop(a, quantise(w, kind[1], (0, 2)), sizes, dy)
  for got, b in zip(trained(x, w, sizes, dy, kind), want, strict=True):
    assert got.dtype == dtype
    assert_close(got, b, 1e-5 if dtype == np.float32 else 2e-2)


@pytest.mark.parametrize(
  'kind,most', [(KINDS[0], 0.009), (KINDS[2], 0.012), (KINDS[3], 0.05)]
)
def test_the_error_is_that_of_the_format(kind, most):
  x, w, sizes, dy = inputs(Shape(256, 256, 64, (100, 0, 156)))
  y, dx, dw = trained(x, w, sizes, dy, kind)
  exact = loop(x, w, sizes, dy)
  # Columns differ in size: the error is relative to each.
  error = np.linalg.norm(y - exact[0], axis=0)
  error /= np.linalg.norm(exact[0], axis=0)
  assert most / 4 < error.mean() < most
  for got, want in ((dx, exact[1]), (dw, exact[2])):
    assert np.linalg.norm(got - want) < most * np.linalg.norm(want)


def test_int8_sums_are_exact_where_f32_would_round():
  # 2,047 products of 127 * 127 pass 2^24 before they cancel.
  x = np.full((1, 4095), 127, np.int8)
  w = np.full((1, 4095, 1), 127, np.int8)
  w[0, 2048:] = -127
  x[0, 2047], w[0, 2047] = 1, 1
  one = jnp.ones((1, 1)), jnp.ones((1, 1, 1))
  for implementation in (None, 'ragged_dot'):
    y = grouped_matmul(
      qwix.QArray(jnp.asarray(x), one[0]),
      qwix.QArray(jnp.asarray(w), one[1]),
      jnp.array([1], jnp.int32),
      implementation=implementation,
    )
    assert y.item() == 1.0


@pytest.mark.slow
def test_training_keeps_quantised_values_alone():
  x, w, sizes, _ = inputs(SMALL['smoke'])
  _, pull = jax.vjp(lambda x, w: quantised_training(x, w, sizes), x, w)
  kept = [a for a in jax.tree.leaves(pull) if hasattr(a, 'nbytes')]
  values, scales = x.size + w.size, 4 * (x.shape[0] + w.shape[0] * w.shape[2])
  assert sum(a.nbytes for a in kept) <= values + scales + sizes.nbytes


@pytest.mark.parametrize('axes', [(), (0,), (2,)])
def test_coarser_scales_are_taken_as_well(axes):
  x, w, sizes, dy = inputs(SMALL['smoke'])
  q = quantise(w, 'int8', axes)
  a = quantise(x, 'int8', ())
  assert_close(grouped_matmul(a, q, sizes), loop(a, q, sizes, dy)[0], 1e-5)


def test_sorted_rows_take_quantised_matrices():
  x, w, sizes, dy = inputs(SMALL['smoke'])
  q = quantise(w, 'int8', (0, 2))
  y = Ragged(x, sizes).dot(q).rows_RD
  assert_close(y, loop(x, q, sizes, dy)[0], 1e-5)


def test_vmap_equals_the_loop():
  x, w, sizes, dy = inputs(SMALL['smoke'])
  xs = jnp.stack([x, 2 * x])
  got = jax.vmap(lambda x: quantised_training(x, w, sizes))(xs)
  for i in range(2):
    a = quantise(xs[i], 'int8', (0,))
    want = loop(a, quantise(w, 'int8', (0, 2)), sizes, dy)[0]
    assert_close(got[i], want, 1e-5)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_only_other_platforms_get_the_library(platform):
  x, w, sizes, dy = inputs(SMALL['smoke'])
  traced = trained.trace(x, w, sizes, dy, KINDS[2])
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert 'ragged_dot' in text
  assert 'ragged_dot' not in traced.lower().as_text()


X, W = jnp.ones((4, 6)), jnp.ones((2, 6, 5))
QX, QW = quantise(X, 'int8', (0,)), quantise(W, 'int8', (0, 2))


@pytest.mark.parametrize(
  'x,w,message',
  [
    (QX, W, 'rows are quantised and matrices are not'),
    (X, quantise(W, 'int8', (0, 1, 2)), r'have scales \(2, 6, 5\); the scales'),
    (
      X,
      qwix.quantize(W, jnp.int8, tiled_axes={1: 3}),
      r'have scales \(1, 2, 1\).*channelwise_axes=\(0, 2\)',
    ),
    (quantise(X, 'int8', (0, 1)), QW, r'channelwise_axes=\(0,\)'),
    (X, qwix.quantize(W, jnp.int4), 'quantised to int4; use int8'),
    (
      X,
      qwix.quantize(W, jnp.int8, calibration_method='minmax'),
      'int8 with a zero point',
    ),
    (jnp.ones((4, 5)), QW, r'not \(4, 5\), \(2, 6, 5\), \(2,\)'),
    (jnp.ones((4, 6), jnp.int8), QW, 'rows are int8; beside quantised'),
  ],
)
def test_misfits_are_refused(x, w, message):
  with pytest.raises(ValueError, match=message):
    grouped_matmul(x, w, jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(matrices='int7'), "matrices='int7' is no dtype to quantise to"),
    (dict(rows='bf16'), "rows='bf16' is no dtype.* or None"),
    (dict(matrices=None), 'matrices=None is no dtype'),
    (dict(implementation='reference'), "'reference' does not train"),
    (dict(sizes_E=jnp.zeros(2)), 'sizes are float32'),
    (dict(sizes_E=jnp.zeros(3, jnp.int32)), r'not \(4, 6\), .*\(3,\)'),
  ],
)
def test_settings_that_cannot_train_are_refused(fields, message):
  fields = dict(sizes_E=jnp.zeros(2, jnp.int32)) | fields
  with pytest.raises(ValueError, match=message):
    quantised_training(X, W, **fields)


def test_without_rows_or_width_there_is_nothing_to_multiply():
  sizes = jnp.zeros(2, jnp.int32)
  for x, w in ((X[:0], W), (X[:, :0], W[:, :0])):
    want = np.zeros((x.shape[0], 5))
    np.testing.assert_array_equal(quantised_training(x, w, sizes), want)
  np.testing.assert_array_equal(grouped_matmul(X[:0], QW, sizes), want[:0])


def test_without_qwix_the_error_names_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'qwix', None)
  with pytest.raises(ImportError, match="needs qwix.*'quant'"):
    quantise(X, 'int8', (0,))
  # What is quantised already needs no qwix.
  assert grouped_matmul(X, QW, jnp.array([4, 0], jnp.int32)).shape == (4, 5)


@pytest.mark.parametrize('implementation', [None, 'ragged_dot', 'reference'])
def test_sizes_that_do_not_fit_are_refused_or_cut(implementation):
  x, w, _, _ = inputs(SMALL['odd'])
  q = quantise(w, 'int8', (0, 2))
  asked = jnp.array([50, -3, 0, 90], jnp.int32)
  cut = jnp.array([50, 0, 0, 51], jnp.int32)
  run = functools.partial(grouped_matmul, implementation=implementation)
  with pytest.raises(ValueError, match=r'sizes\[1\]=-3 is negative'):
    run(x, q, asked)
  got = jax.jit(run)(x, q, asked)
  np.testing.assert_array_equal(got, jax.jit(run)(x, q, cut))
