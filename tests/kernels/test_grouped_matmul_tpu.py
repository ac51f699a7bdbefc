"""The TPU kernels, interpreted on CPU, against a float64 loop over groups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul import megablox, pallas_tpu, visits
from pallas_kernels.grouped_matmul.shapes import SMALL, Shape
from pallas_kernels.grouped_matmul.tile_shapes import TileShape
from tests.kernels.oracle import assert_close, product, product_inputs

# The interpreter's program is nobody's: only its results count.
pytestmark = pytest.mark.usefixtures('quick_compilation')
# Several tiles along every axis, with a part of one left over.
ODD = Shape(123, 300, 600, (0, 50, 3, 0, 17, 40, 0))
# Matrices that lie in memory with D as the last axis.
SWAPPED = Shape(123, 256, 200, ODD.sizes)
SMALL_TILES = TileShape(16, 128, 256)
# Tiles of several parts: groups that own whole tiles, several in one tile and
# in one part, ends on and off parts, rows of no group.
PARTS = Shape(700, 300, 200, (0, 250, 3, 64, 0, 70, 217, 1, 0))
# Leaves NaN in all that nothing was written to, and past the ends of arrays.
STRICT = pltpu.InterpretParams(uninitialized_memory='nan')


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _results(x, w, sizes, dy, tiles=None, interpret=True, library=pallas_tpu):
  settings = dict(interpret=interpret)
  if tiles is not None:
    settings['tiles'] = tiles
  return (
    library.nn(x, w, sizes, **settings),
    library.nt(dy, w, sizes, **settings),
    library.tn(x, dy, sizes, **settings),
  )


@pytest.mark.parametrize('name', list(SMALL))
def test_each_form_equals_the_loop(name):
  inputs = product_inputs(SMALL[name])
  assert_close(_results(*inputs), product(*inputs), 1e-5)


@pytest.mark.parametrize(
  'shape, tiles, dtype, tolerance',
  [
    (ODD, SMALL_TILES, jnp.float32, 1e-5),
    (ODD, SMALL_TILES, jnp.bfloat16, 2e-2),
    (SWAPPED, TileShape(48, 128, 128), jnp.float32, 1e-5),
    (SWAPPED, TileShape(16, 256, 200), jnp.bfloat16, 2e-2),
    (PARTS, TileShape(192, 128, 128), jnp.float32, 1e-5),
    (PARTS, TileShape(128, 300, 200), jnp.float32, 1e-5),
    (PARTS, TileShape(512, 128, 256), jnp.bfloat16, 2e-2),
  ],
)
def test_several_tiles_along_every_axis_equal_the_loop(
  shape, tiles, dtype, tolerance
):
  inputs = product_inputs(shape, dtype)
  got = _results(*inputs, tiles)
  assert all(a.dtype == dtype for a in got)
  assert_close(got, product(*inputs), tolerance)


@pytest.mark.parametrize('sizes', [(0, 50, 3, 0, 17, 40, 0), (0,) * 7])
def test_nothing_unwritten_or_out_of_bounds_reaches_a_result(sizes):
  inputs = product_inputs(Shape(123, 300, 600, sizes))
  got = _results(*inputs, SMALL_TILES, STRICT)
  assert_close(got, product(*inputs), 1e-5)


@pytest.mark.parametrize('tiles', [(256, 128, 128), (256, 300, 200)])
def test_parts_that_no_group_holds_reach_no_result(tiles):
  inputs = product_inputs(PARTS)
  got = _results(*inputs, TileShape(*tiles), STRICT)
  assert_close(got, product(*inputs), 1e-5)


@given(cuts=st.lists(st.integers(0, 400), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_any_sizes_equal_the_loop_where_tiles_have_parts(cuts):
  sizes = np.diff(sorted(cuts), prepend=0)
  inputs = product_inputs(Shape(400, 130, 129, tuple(sizes)))
  got = _results(*inputs, TileShape(192, 128, 128))
  assert_close(got, product(*inputs), 1e-5)


@given(cuts=st.lists(st.integers(0, 70), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_any_sizes_equal_the_loop(cuts):
  sizes = np.diff(sorted(cuts), prepend=0)
  inputs = product_inputs(Shape(70, 130, 129, tuple(sizes)))
  got = _results(*inputs, TileShape(8, 128, 128))
  assert_close(got, product(*inputs), 1e-5)


@pytest.mark.parametrize('name', ['odd', 'rows past the end', 'one row'])
def test_megablox_equals_the_loop(name):
  inputs = product_inputs(SMALL[name])
  got = _results(*inputs, library=megablox)
  assert_close(got, product(*inputs), 1e-5)


@given(
  cuts=st.lists(st.integers(0, 97), min_size=5, max_size=5),
  tile=st.sampled_from([1, 8, 10, 97, 128]),
)
@settings(max_examples=50, deadline=None)
def test_visits_meet_each_row_of_a_group_once_and_are_few(cuts, tile):
  sizes = np.diff(sorted(cuts), prepend=0).astype(np.int32)
  group_of_row = np.repeat(np.arange(5), sizes)
  for plan in (visits.with_rest, visits.of_every_group):
    found = plan(jnp.array(sizes), 97, tile)
    count = int(found.count)
    assert count <= visits.most(97, tile, 5)
    group = np.asarray(found.group_V)[:count]
    at = np.arange(count) + np.asarray(found.shift_G)[group]
    assert (np.diff(group) >= 0).all()
    assert at.min() >= 0 and at.max() < -(-97 // tile)
    met = np.zeros(97, int)
    for e, t in zip(group, at, strict=True):
      rows = np.arange(t * tile, min((t + 1) * tile, len(group_of_row)))
      met[rows] += group_of_row[rows] == e
    assert (met[: len(group_of_row)] == 1).all()
    if plan is visits.with_rest:
      assert (np.diff(at) >= 0).all()
      assert set(at) == set(range(-(-97 // tile)))
    else:
      assert set(group) == set(range(5))


@pytest.mark.parametrize('form', ['nn', 'nt', 'tn'])
def test_the_kernel_lowers_for_tpu_without_one(form):
  x, w, sizes, dy = product_inputs(ODD, jnp.bfloat16)
  args = dict(nn=(x, w), nt=(dy, w), tn=(x, dy))[form]
  call = jax.jit(functools.partial(getattr(pallas_tpu, form)))
  text = call.trace(*args, sizes).lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') == 1
  assert f'grouped_matmul_{form}' in text


def test_more_scalars_than_there_is_memory_for_are_refused():
  rows = jax.ShapeDtypeStruct((2**24, 128), jnp.bfloat16)
  w = jax.ShapeDtypeStruct((2**17, 128, 128), jnp.bfloat16)
  sizes = jax.ShapeDtypeStruct((2**17,), jnp.int32)
  assert 'bytes of scalars' in pallas_tpu.refuses('nn', rows, w, sizes)
  wide = jax.ShapeDtypeStruct((2**24, 128), jnp.float64)
  assert 'not float64' in pallas_tpu.refuses('nn', wide, w, sizes)
