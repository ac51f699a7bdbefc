"""The pieces of a tile that the TPU kernels multiply."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from pallas_kernels.grouped_matmul import pallas_tpu, row_parts
from pallas_kernels.grouped_matmul.tile_shapes import TileShape

TILES = [(16, 16), (100, 100), (128, 64), (192, 64), (320, 64), (1024, 64)]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _pieces(begin, end, rows, part):
  return row_parts.pieces(begin, end, rows, part)


@given(data=st.data(), tile=st.sampled_from(TILES))
@settings(max_examples=200, deadline=None)
def test_pieces_are_the_parts_that_hold_rows_each_once(data, tile):
  rows, part = tile
  begin = data.draw(st.integers(-rows, rows - 1))
  end = data.draw(st.integers(max(begin, 0) + 1, 2 * rows))
  taken = np.zeros(rows, int)
  for start, size, present in _pieces(begin, end, rows, part):
    if present:
      assert 0 <= start <= start + size <= rows
      taken[int(start) : int(start + size)] += 1
  own = np.zeros(rows, bool)
  own[max(begin, 0) : end] = True
  want = own.reshape(-1, part).any(1).repeat(part)
  np.testing.assert_array_equal(taken, want)


@pytest.mark.parametrize('rows, part', TILES)
def test_all_pieces_together_are_little_more_code_than_the_tile(rows, part):
  sizes = [int(size) for _, size, _ in _pieces(0, rows, rows, part)]
  assert sum(sizes) < 2 * rows
  if np.log2(rows / part).is_integer():
    assert sum(sizes) == rows
  assert len(sizes) == 1 + np.ceil(np.log2(rows / part))


def test_a_part_is_whole_registers_that_divide_the_tile():
  for rows, itemsize in ((1024, 2), (192, 2), (48, 2), (24, 4), (8, 4)):
    part = row_parts.part_rows(rows, itemsize)
    assert rows % part == 0 and part % (32 // itemsize) == 0
    assert part <= row_parts.PART_ROWS
  # A tile of all rows there are has any length.
  assert row_parts.part_rows(100, 2) == 100


@pytest.mark.parametrize('form', ['nn', 'nt', 'tn'])
def test_a_kernel_has_products_of_whole_tiles_and_of_these_pieces(form):
  x, y = (jax.ShapeDtypeStruct((4096, n), 'bfloat16') for n in (256, 128))
  w = jax.ShapeDtypeStruct((8, 256, 128), 'bfloat16')
  sizes = jax.ShapeDtypeStruct((8,), 'int32')
  args = {'nn': (x, w), 'nt': (y, w), 'tn': (x, y)}[form]
  call = functools.partial(
    getattr(pallas_tpu, form), tiles=TileShape(512, 256, 128)
  )
  rows = sorted(_contracted_rows(jax.make_jaxpr(call)(*args, sizes).jaxpr))
  whole = [512] * (2 if form == 'tn' else 1)  # first and later tiles
  assert rows == [64, 64, 128, 256, *whole]


def _contracted_rows(jaxpr):
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield eqn.invars[0].aval.shape[0]
    for inner in jaxprs_in_params(eqn.params):
      yield from _contracted_rows(inner)
