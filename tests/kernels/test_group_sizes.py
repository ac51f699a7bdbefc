"""Group sizes that do not fit the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.choose import Entry
from pallas_kernels.grouped_matmul import megablox, pallas_tpu
from pallas_kernels.grouped_matmul.api import (
  NN,
  NT,
  TN,
  grouped_matmul,
  misfit_rows,
)
from pallas_kernels.grouped_matmul.sizes import fit_sizes

ROWS, D, F = 40, 8, 12
# Asked for and given: negative, too many in one, too many in sum, too many for
# 32 bits in sum.
BAD = [
  ((10, -3, 20, 5), (10, 0, 20, 5)),
  ((10, 0, 50, 5), (10, 0, 30, 0)),
  ((30, 8, 7, 0), (30, 8, 2, 0)),
  ((-(2**31), 5, 2**31 - 1, 2**31 - 1), (0, 5, 35, 0)),
]
HERE = [None, 'ragged_dot', 'reference']


def _loop(sizes, rows):
  """The sizes given, one group after the other."""
  given_, left = [], rows
  for size in sizes:
    given_.append(min(max(size, 0), left))
    left -= given_[-1]
  return given_


@functools.partial(jax.jit, static_argnums=1)
def _fit(sizes, rows):
  return fit_sizes(sizes, rows), misfit_rows(sizes, rows)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_sizes_are_cut_group_by_group_and_the_rest_is_counted(sizes):
  for rows in (0, 1000, 2**31 - 1):
    got, misfit = _fit(jnp.array(sizes, jnp.int32), rows)
    got, misfit = got.tolist(), int(misfit)
    assert got == _loop(sizes, rows)
    exact = sum(abs(a - b) for a, b in zip(sizes, got, strict=True))
    assert misfit == exact if exact < 2**30 else misfit == 2**31 - 1


@pytest.mark.parametrize('dtype', [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
def test_sizes_of_any_integer_type_are_cut(dtype):
  sizes = jnp.array([100, 7, 120], dtype)
  fit = fit_sizes(sizes, 1000)
  assert fit.dtype == jnp.int32 and fit.tolist() == [100, 7, 120]
  assert fit_sizes(sizes, 110).tolist() == [100, 7, 3]
  assert int(misfit_rows(sizes, 110)) == 117


@functools.partial(jax.jit, static_argnums=4)
def _results(x, w, sizes, dy, implementation):
  def f(x, w):
    return grouped_matmul(x, w, sizes, implementation=implementation)

  y, pull = jax.vjp(f, x, w)
  return y, *pull(dy)


@functools.partial(jax.jit, static_argnums=4)
def _interpreted(x, w, sizes, dy, library):
  sizes = fit_sizes(sizes, ROWS)
  return (
    library.nn(x, w, sizes, interpret=True),
    library.tn(x, dy, sizes, interpret=True),
  )


@pytest.mark.parametrize('implementation', HERE)
@pytest.mark.parametrize('asked, fit', BAD)
def test_under_jit_bad_sizes_give_what_the_cut_sizes_give(
  asked, fit, implementation
):
  draw = np.random.default_rng(0).normal
  x = np.asarray(draw(size=(ROWS, D)), np.float32)
  x[sum(fit) :] = np.nan
  w = jnp.asarray(draw(size=(4, D, F)), jnp.float32)
  dy = np.asarray(draw(size=(ROWS, F)), np.float32)

  got = _results(x, w, jnp.array(asked, jnp.int32), dy, implementation)
  y, dx, dw = np.zeros((ROWS, F)), np.zeros((ROWS, D)), np.zeros((4, D, F))
  begin = 0
  for e, size in enumerate(fit):
    own = slice(begin, begin + size)
    y[own], dx[own] = x[own] @ w[e], dy[own] @ w[e].T
    dw[e] = x[own].T @ dy[own]
    begin += size
  for a, b in zip(got, (y, dx, dw), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  assert int(misfit_rows(jnp.array(asked, jnp.int32), ROWS)) > 0


@pytest.mark.parametrize('library', [pallas_tpu, megablox])
@pytest.mark.parametrize('asked, fit', BAD)
def test_tpu_kernels_give_zeros_past_the_cut_sizes(asked, fit, library):
  x = np.ones((ROWS, D), np.float32)
  x[sum(fit) :] = np.nan
  dy = np.where(np.isnan(x[:, :1]), np.nan, np.ones((ROWS, F), np.float32))
  w = np.arange(1, 5, dtype=np.float32)[:, None, None] * np.ones((4, D, F))
  group_R = np.repeat([1, 2, 3, 4, 0], (*fit, ROWS - sum(fit)))[:, None]

  w, sizes = w.astype(np.float32), jnp.array(asked, jnp.int32)
  y, dw = _interpreted(x, w, sizes, dy, library)
  np.testing.assert_array_equal(y, D * group_R * np.ones((ROWS, F)))
  np.testing.assert_array_equal(
    dw, np.array(fit)[:, None, None] * np.ones((4, D, F))
  )


def test_forward_and_backward_of_any_implementation_get_the_cut_sizes(
  monkeypatch,
):
  x, w = jnp.zeros((ROWS, D)), jnp.zeros((4, D, F))
  for table, shape in ((NN, (ROWS, F)), (NT, (ROWS, D)), (TN, (4, D, F))):

    def probe(a, b, sizes, shape=shape):
      at = (slice(4), *(0,) * (len(shape) - 1))
      return jnp.zeros(shape).at[at].set(sizes)

    monkeypatch.setitem(table, 'probe', Entry(probe))

  @jax.jit
  def run(sizes):
    y, pull = jax.vjp(
      lambda x, w: grouped_matmul(x, w, sizes, implementation='probe'), x, w
    )
    return y, *pull(y)

  for asked, fit in BAD:
    y, dx, dw = run(jnp.array(asked, jnp.int32))
    for got in (y[:4, 0], dx[:4, 0], dw[:, 0, 0]):
      assert got.tolist() == list(fit)


@pytest.mark.parametrize(
  'sizes, message',
  [
    ((10, -3, 20, 5), r'sizes\[1\]=-3 is negative'),
    ((30, 8, 7, 0), 'sizes sum to 45 but there are 40 rows'),
    ((0, 0, 2**31 - 1, 2**31 - 1), 'sum to 4294967294'),
  ],
)
def test_known_sizes_that_do_not_fit_are_refused(sizes, message):
  x, w = jnp.zeros((ROWS, D)), jnp.zeros((4, D, F))
  sizes = jnp.array(sizes, jnp.int32)
  with pytest.raises(ValueError, match=message):
    grouped_matmul(x, w, sizes)
  with pytest.raises(ValueError, match=message):
    jax.jit(lambda x: grouped_matmul(x, w, sizes))(x)
