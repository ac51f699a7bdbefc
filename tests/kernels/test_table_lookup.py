"""Weighted sums of table rows, products with them, and their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.table_lookup import pallas_tpu
from pallas_kernels.table_lookup.api import (
  table_lookup,
  table_products,
  touched_rows,
)
from pallas_kernels.table_lookup.shapes import SMALL

pytestmark = pytest.mark.usefixtures('quick_compilation')
QUICK = ('two parts', 'one slot')
SHAPES = pytest.mark.parametrize(
  'shape',
  [
    pytest.param(
      shape, id=name, marks=[] if name in QUICK else [pytest.mark.slow]
    )
    for name, shape in SMALL.items()
  ],
)


def problem(shape, seed=0):
  """(table, ids, weights, dy); some slots are named often, most never."""
  n, k, slots, d, parts = shape
  rng = np.random.default_rng(seed)
  ids = (slots * rng.random((n, k)) ** 3).astype(np.int32)
  floats = [
    rng.normal(size=size).astype(np.float32)
    for size in ((slots, d), (n, k, parts), (n, d))
  ]
  return jnp.asarray(floats[0]), jnp.asarray(ids), *map(jnp.asarray, floats[1:])


def oracle(table, ids, weights, dy):
  """A loop over pairs in float64: y, dtable and dweights."""
  table, weights, dy = (np.asarray(a, np.float64) for a in (table, weights, dy))
  parts = weights.shape[-1]
  y, dtable = np.zeros(dy.shape), np.zeros(table.shape)
  dweights = np.zeros(weights.shape)
  for n, row in enumerate(np.asarray(ids)):
    for k, slot in enumerate(row):
      wide = np.tile(weights[n, k], dy.shape[1] // parts)
      y[n] += wide * table[slot]
      dtable[slot] += wide * dy[n]
      dweights[n, k] = (table[slot] * dy[n]).reshape(-1, parts).sum(0)
  return y, dtable, dweights


def close(got, want):
  for a, b in zip(got, want, strict=True):
    error = np.sqrt(np.mean((np.asarray(a, np.float64) - b) ** 2))
    assert error <= 1e-5 * np.sqrt(np.mean(b**2))


@pytest.mark.parametrize('implementation', ['columns', 'blocks', 'reference'])
@SHAPES
def test_a_lookup_and_its_gradients_equal_a_loop(shape, implementation):
  args = problem(shape)

  @jax.jit
  def run(table, ids, weights, dy):
    f = functools.partial(table_lookup, implementation=implementation)
    y, pull = jax.vjp(lambda t, w: f(t, ids, w), table, weights)
    return y, *pull(dy)

  close(run(*args), oracle(*args))


@pytest.mark.parametrize('implementation', [None, 'blocks', 'reference'])
def test_products_and_their_gradients_equal_a_loop(implementation):
  table, ids, da, x = problem((70, 3, 50, 24, 1))

  @jax.jit
  def run(table, x, da):
    f = functools.partial(table_products, implementation=implementation)
    a, pull = jax.vjp(lambda t, x: f(t, ids, x), table, x)
    return a, *pull(da)

  dx, dtable, a = oracle(table, ids, da, x)
  close(run(table, x, da[..., 0]), (a[..., 0], dtable, dx))


@pytest.mark.parametrize('implementation', ['places', 'blocks'])
@SHAPES
def test_touched_rows_are_the_gradient_and_each_slot_comes_once(
  shape, implementation
):
  _, ids, weights, dy = args = problem(shape)
  slots = shape[2]
  run = functools.partial(
    touched_rows, slots=slots, implementation=implementation
  )
  found, rows = jax.jit(run)(ids, weights, dy)
  found, rows = np.asarray(found), np.asarray(rows)
  live = found < slots
  np.testing.assert_array_equal(found[live], np.unique(ids))
  dense = np.zeros((slots, shape[3]))
  dense[found[live]] = rows[live]
  close([dense], [oracle(*args)[1]])


@pytest.mark.parametrize(
  'name',
  [
    'two parts',
    *(pytest.param(n, marks=pytest.mark.slow) for n in ('one token', 'odd')),
  ],
)
def test_the_tpu_kernels_equal_a_loop(name):
  shape = SMALL[name]
  table, ids, weights, dy = args = problem(shape)

  @jax.jit
  def run(table, weights, dy):
    y = pallas_tpu.lookup(table, ids, weights, interpret=True)
    return y, pallas_tpu.products(
      table, ids, dy, parts=shape[4], interpret=True
    )

  want = oracle(*args)
  close(run(table, weights, dy), (want[0], want[2]))


def test_gradients_of_two_runs_are_equal_bit_for_bit():
  table, ids, weights, dy = problem(SMALL['odd'])

  @functools.partial(jax.jit, static_argnums=0)
  def run(implementation, table):
    f = functools.partial(table_lookup, implementation=implementation)
    return jax.vjp(lambda t: f(t, ids, weights), table)[1](dy)[0]

  for name in (None, 'blocks'):
    first = run(name, table)
    np.testing.assert_array_equal(first, run(name, table))


def test_the_rows_of_all_tokens_are_never_made_at_once():
  n, k, d = 512, 16, 32
  table, ids, weights, dy = problem((n, k, 100, d, 1))

  def run(table, weights):
    f = functools.partial(table_lookup, ids_NK=ids)
    y, pull = jax.vjp(lambda t, w: f(t, weights_NK=w), table, weights)
    return y, pull(dy)

  memory = jax.jit(run).lower(table, weights).compile().memory_analysis()
  assert memory.temp_size_in_bytes < n * k * d * 4 / 2


def test_what_does_not_fit_is_refused():
  table, ids, weights, dy = problem(SMALL['two parts'])
  with pytest.raises(ValueError, match=r'weights \(69, 3, 2\) do not go with'):
    table_lookup(table, ids, weights[1:])
  with pytest.raises(ValueError, match='no rows of 2 equal parts'):
    table_lookup(table[:, 1:], ids, weights)
  with pytest.raises(ValueError, match='takes integer ids'):
    table_products(table, weights[..., 0], dy)
  with pytest.raises(ValueError, match=r'x \(69, 24\) does not go with ids'):
    table_products(table, ids, dy[1:])
  with pytest.raises(NotImplementedError, match='f32 tables only'):
    table_lookup(
      table.astype(jnp.bfloat16), ids, weights, implementation='mosaic'
    )


@pytest.mark.parametrize(
  'shapes,tokens',
  [
    ([(768,), (768,)], 64),
    ([(768,), (128, 1)], 24),
    ([(256, 2), (720,)], 8),
    ([(4096, 1), (96,)], 8),
  ],
)
def test_a_step_has_room_for_what_its_tokens_have(shapes, tokens):
  assert pallas_tpu.tokens_of_step(*shapes) == tokens
