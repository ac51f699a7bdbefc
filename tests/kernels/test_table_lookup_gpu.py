"""The GPU kernels of lookups, interpreted, against a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.table_lookup import pallas_gpu
from pallas_kernels.table_lookup.shapes import SMALL
from tests.kernels.test_table_lookup import close, oracle, problem

pytestmark = pytest.mark.usefixtures('quick_compilation')
QUICK = ('two parts',)
SHAPES = [
  pytest.param(
    shape, id=name, marks=[] if name in QUICK else [pytest.mark.slow]
  )
  for name, shape in SMALL.items()
]
# More columns and more rows than a program reads at a time.
WIDE = pytest.param(
  (5, 19, 30, 300, 2), id='several blocks', marks=pytest.mark.slow
)


@functools.partial(jax.jit, static_argnums=0)
def run(parts, table, ids, weights, dy):
  """y, a total with the gradient of the table, and that of the weights."""
  y = pallas_gpu.lookup(table, ids, weights, interpret=True)
  da = pallas_gpu.products(table, ids, dy, parts=parts, interpret=True)
  total = jnp.ones(table.shape, jnp.float32)
  total = pallas_gpu.gradient(total, ids, weights, dy, interpret=True)
  return y, total, da


@pytest.mark.parametrize('shape', [*SHAPES, WIDE])
def test_a_lookup_and_its_gradients_equal_a_loop(shape):
  args = problem(shape)
  y, dtable, dweights = oracle(*args)
  close(run(shape[4], *args), (y, 1 + dtable, dweights))


@pytest.mark.slow
def test_tables_of_bf16_are_summed_in_f32():
  shape = SMALL['odd']
  table, ids, weights, dy = problem(shape)
  table, dy = table.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
  got = run(shape[4], table, ids, weights, dy)
  assert all(a.dtype == jnp.float32 for a in got)
  y, dtable, dweights = oracle(
    table.astype(jnp.float32), ids, weights, dy.astype(jnp.float32)
  )
  close(got, (y, 1 + dtable, dweights))


def test_each_slot_that_is_named_has_its_pairs_in_the_order_of_tokens():
  ids = jnp.asarray([[7, 2], [2, 2], [0, 7]], jnp.int32)
  slots, ends, pairs = map(np.asarray, jax.jit(pallas_gpu._segments)(ids))
  found = {
    int(slot): pairs[first:last].tolist()
    for slot, (first, last) in zip(slots, ends, strict=True)
    if first < last
  }
  assert found == {0: [4], 2: [1, 2, 3], 7: [0, 5]}
  assert (ends[:, 0] < ends[:, 1]).sum() == 3


def test_rows_that_nobody_names_keep_their_bits():
  total = jnp.asarray([[np.nan, 1.0], [-0.0, 2.0], [3.0, 4.0]], jnp.float32)
  ids, weights = jnp.full((2, 1), 2, jnp.int32), jnp.ones((2, 1, 1))
  gradient = functools.partial(pallas_gpu.gradient, interpret=True)
  got = jax.jit(gradient)(total, ids, weights, jnp.ones((2, 2)))
  assert np.asarray(got[:2]).tobytes() == np.asarray(total[:2]).tobytes()
  np.testing.assert_array_equal(got[2], [5.0, 6.0])
