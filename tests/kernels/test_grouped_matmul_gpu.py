"""The GPU kernels of the grouped product, interpreted, against a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.choose import Entry
from pallas_kernels.grouped_matmul import api, library_gpu, pallas_gpu
from pallas_kernels.grouped_matmul.gpu_schedule import GROUP_N, place, schedule
from pallas_kernels.grouped_matmul.gpu_tiles import (
  SHARED_BYTES,
  Product,
  Tiles,
  candidates,
  choose_tiles,
)
from pallas_kernels.grouped_matmul.shapes import SMALL, Shape
from tests.kernels.oracle import assert_close, product, product_inputs

# The interpreter's program is nobody's: only its results count.
pytestmark = pytest.mark.usefixtures('quick_compilation')
SMALL_TILES = Tiles(16, 16, 16)


@pytest.fixture(autouse=True)
def _entries(monkeypatch):
  """Names for the kernels on this host, with small tiles and others."""
  for name, tiles in {
    'small tiles': SMALL_TILES,
    'oblong tiles': Tiles(32, 64, 128),
  }.items():
    for form in ('nn', 'nt', 'tn'):
      kernel = getattr(pallas_gpu, form)
      call = functools.partial(kernel, tiles=tiles, interpret=True)
      entry = Entry(call, refuses=pallas_gpu.refuses)
      monkeypatch.setitem(getattr(api, form.upper()), name, entry)


@functools.partial(jax.jit, static_argnums=4)
def _results(x, w, sizes, dy, name='small tiles'):
  f = functools.partial(api.grouped_matmul, sizes_E=sizes, implementation=name)
  y, pull = jax.vjp(f, x, w)
  return y, *pull(dy)


@pytest.mark.parametrize('name', list(SMALL))
def test_outputs_and_gradients_equal_the_loop(name):
  inputs = product_inputs(SMALL[name])
  assert_close(_results(*inputs), product(*inputs), 1e-5)


@pytest.mark.parametrize('name', ['odd', 'rows past the end'])
def test_bf16_is_close_to_the_loop(name):
  inputs = product_inputs(SMALL[name], jnp.bfloat16)
  got = _results(*inputs)
  assert all(a.dtype == jnp.bfloat16 for a in got)
  assert_close(got, product(*inputs), 2e-2)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_widths_that_no_tile_divides_equal_the_loop(dtype):
  inputs = product_inputs(Shape(90, 100, 600, (40, 0, 33)), dtype)
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  got = _results(*inputs, 'oblong tiles')
  assert_close(got, product(*inputs), tolerance)


@given(cuts=st.lists(st.integers(0, 100), min_size=6, max_size=6))
@settings(max_examples=20, deadline=None)
def test_any_sizes_equal_the_loop(cuts):
  sizes = np.diff(sorted(cuts), prepend=0)
  inputs = product_inputs(Shape(100, 3, 20, tuple(sizes)))
  assert_close(_results(*inputs), product(*inputs), 1e-5)


def test_an_empty_group_has_a_zero_gradient_bit_for_bit():
  *_, dw = _results(*product_inputs(SMALL['empty groups']))
  empty = np.array(SMALL['empty groups'].sizes) == 0
  assert not np.asarray(dw)[empty].any()
  assert np.asarray(dw)[~empty].any(axis=(1, 2)).all()


def test_sizes_that_exceed_the_rows_are_cut_and_negative_ones_are_zero():
  x, w, _, dy = product_inputs(Shape(40, 8, 8, (10, 0, 20, 10)))
  wrong = jnp.array([10, -7, 20, 10**9], jnp.int32)
  want = product(x, w, [10, 0, 20, 10], dy)
  assert_close(_results(x, w, wrong, dy), want, 1e-5)


@pytest.mark.parametrize('rest', [True, False])
@pytest.mark.parametrize('rows', [1, 15, 16, 17, 500])
def test_row_tiles_cover_every_row_once(rows, rest):
  rng = np.random.default_rng(rows)
  sizes = rng.multinomial(rows * 3 // 4, rng.dirichlet(np.full(7, 0.3)))
  cut = schedule(jnp.array(sizes, jnp.int32), rows, 16, rest=rest)
  owner = np.repeat(np.arange(8), [*sizes, rows - sizes.sum()])
  visits = np.zeros(rows, int)
  for group, start, live in zip(*map(np.asarray, cut), strict=True):
    assert 0 <= live <= 16
    visits[start : start + live] += 1
    assert (owner[start : start + live] == group).all()
  assert (visits == (1 if rest else owner < 7)).all()
  assert cut.group_J.size <= rows // 16 + 7 + rest


@pytest.mark.parametrize('tiles_n', [1, GROUP_N, 3 * GROUP_N + 5])
def test_every_block_has_one_program_and_neighbours_share_rows(tiles_n):
  programs = jnp.arange(11 * tiles_n, dtype=jnp.int32)
  row, column = jax.vmap(lambda p: place(p, 11, tiles_n))(programs)
  blocks = set(zip(row.tolist(), column.tolist(), strict=True))
  assert blocks == {(i, j) for i in range(11) for j in range(tiles_n)}
  changes = np.count_nonzero(np.diff(row))
  assert changes <= 11 * -(-tiles_n // GROUP_N)


PRODUCTS = [
  Product(m, n, k, dtype, lefts, rights, heavy)
  for m in (1, 100, 4096)
  for n, k in ((256, 1536), (1536, 256), (5, 3))
  for dtype in (jnp.float32, jnp.bfloat16)
  for lefts, rights, heavy in ((1, 1, False), (1, 2, True), (2, 2, False))
]


def test_tiles_by_rule_and_all_candidates_fit_the_chip():
  for p in PRODUCTS:
    found = candidates(p)
    assert found[0] == choose_tiles(p)
    assert len(set(found)) == len(found)
    itemsize = jnp.dtype(p.dtype).itemsize
    for tiles in found:
      need = tiles.shared_bytes(itemsize, p.lefts, p.rights)
      assert need <= SHARED_BYTES


def test_large_groups_have_more_candidates_than_the_rule():
  counts = [len(candidates(p)) for p in PRODUCTS if p.m == 4096 and p.n > 5]
  assert min(counts) > 5


def test_tiles_beyond_the_chip_are_refused_with_the_figures():
  x, w, sizes, _ = product_inputs(SMALL['smoke'])
  large = Tiles(256, 256, 128, num_stages=4)
  with pytest.raises(ValueError, match='needs 1048576 bytes.*232448'):
    pallas_gpu.nn(x, w, sizes, tiles=large, interpret=True)


@pytest.mark.parametrize('size', [8, 48])
def test_blocks_that_triton_cannot_have_are_refused(size):
  with pytest.raises(ValueError, match=f'block_k={size}.*power of 2'):
    Tiles(16, 16, size)


def test_other_dtypes_are_refused_with_the_reason():
  x, w, sizes, _ = product_inputs(SMALL['smoke'])
  x, w = x.astype(jnp.float16), w.astype(jnp.float16)
  with pytest.raises(NotImplementedError, match='float32 and bfloat16, not fl'):
    api.grouped_matmul(x, w, sizes, implementation='triton')


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(dtype=jnp.float32), 'bfloat16, not float32'),
    (dict(groups=65), '65 groups exceed the 64'),
    (dict(d=192), r'widths \(192, 256\) are not multiples of 128'),
  ],
)
def test_the_library_for_hopper_refuses_with_the_reason(change, message):
  is_ = dict(dtype=jnp.bfloat16, groups=4, d=128) | change
  x = jnp.zeros((8, is_['d']), is_['dtype'])
  w = jnp.zeros((is_['groups'], is_['d'], 256), is_['dtype'])
  sizes = jnp.zeros(is_['groups'], jnp.int32)
  with pytest.raises(NotImplementedError, match=message):
    api.grouped_matmul(x, w, sizes, implementation='mosaic_gpu')


def test_a_library_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setattr(library_gpu, '_has', lambda module: False)
  x, w, sizes, _ = product_inputs(SMALL['smoke'], jnp.bfloat16)
  with pytest.raises(NotImplementedError, match='tokamax is not installed'):
    api.grouped_matmul(x, w, sizes, implementation='tokamax')
