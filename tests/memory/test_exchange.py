"""Lookups in tables whose slots are cut, against whole tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from moejax import sharding
from moejax.memory import exchange, tables
from moejax.memory.exchange import Sizes

pytestmark = pytest.mark.usefixtures('quick_compilation')
SLOTS, D, C = 48, 6, 2


def problem(tokens, k, spread):
  """(table, ids, weights, x, dy, da); `spread` 0 puts all ids in one shard."""
  draw = np.random.default_rng(0)
  ids = (SLOTS * draw.random((tokens, k)) * spread).astype(np.int32)
  shapes = (SLOTS, D), (tokens, k, C), (tokens, D), (tokens, D), (tokens, k)
  table, *rest = (jnp.asarray(draw.normal(size=s), jnp.float32) for s in shapes)
  return table, jnp.asarray(ids), *rest


def run(table, ids, weights, x, dy, da):
  """Both operations and all their gradients."""

  def both(table, weights, x):
    y = tables.lookup(table, ids, weights)
    return y, tables.products(table, ids, x)

  out, pull = jax.vjp(both, table, weights, x)
  return out, pull((dy, da))


def exchanged(sizes, *args):
  mesh = sharding.make_mesh(sizes)
  rules = (('batch', ('data', 'expert')), ('slots', 'expert'))
  with sharding.use(mesh, rules):
    return jax.jit(lambda *args: run(*args))(*args)


@pytest.mark.parametrize(
  'tokens,k,spread,expert,step',
  [
    # 13 tokens are no equal parts of 8 devices; steps of one token each.
    (13, 5, 1.0, 4, 1),
    # All picks are of one device: as many rounds as there can be.
    pytest.param(16, 40, 0.0, 8, 2**20, marks=pytest.mark.slow),
    pytest.param(16, 1, 1.0, 2, 2**20, marks=pytest.mark.slow),
    pytest.param(70, 12, 0.5, 8, 1200, marks=pytest.mark.slow),
  ],
)
def test_an_exchange_equals_a_whole_table_with_all_gradients(
  tokens, k, spread, expert, step, monkeypatch
):
  monkeypatch.setattr(exchange, 'STEP_BYTES', step)
  args = problem(tokens, k, spread)
  want = jax.jit(lambda *args: run(*args))(*args)
  got = exchanged({'data': 8 // expert, 'expert': expert}, *args)
  for i, tolerance in enumerate((1e-6, 1e-5)):
    pairs = zip(*map(jax.tree.leaves, (got[i], want[i])), strict=True)
    for a, b in pairs:
      size = np.abs(b).max()
      np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)
  again = exchanged({'data': 8 // expert, 'expert': expert}, *args)
  jax.tree.map(np.testing.assert_array_equal, got, again)


@pytest.mark.slow
def test_tables_and_vectors_of_half_precision_keep_their_dtype():
  args = [*problem(16, 6, 1.0)]
  args[0], args[3] = (a.astype(jnp.bfloat16) for a in (args[0], args[3]))
  want = jax.jit(lambda *args: run(*args))(*args)
  got = exchanged({'data': 2, 'expert': 4}, *args)
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    assert a.dtype == b.dtype
    a, b = (np.asarray(a, np.float32) for a in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=0.01 * np.abs(b).max())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_devices(monkeypatch):
  """32 tokens of each device, looked up where the rows are."""
  monkeypatch.setattr(exchange, 'STEP_BYTES', 32 * D * 4)
  found = {}
  for expert in (2, 8):
    args = problem(32 * expert, 16, 1.0)
    mesh = sharding.make_mesh({'expert': expert}, jax.devices()[:expert])
    rules = (('batch', 'expert'), ('slots', 'expert'))
    spec = PartitionSpec('expert')
    where = jax.sharding.NamedSharding(mesh, spec)
    shapes = [
      jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where) for a in args
    ]
    with sharding.use(mesh, rules):
      made = jax.jit(lambda *args: run(*args)).lower(*shapes).compile()
    found[expert] = made.memory_analysis().temp_size_in_bytes
  assert found[8] < 1.1 * found[2]


def test_evenly_spread_picks_take_two_rounds():
  """Two buffers hold the fullest of a binomial."""
  draw = np.random.default_rng(0)
  for ranks, k in ((2, 32), (8, 32), (32, 256), (64, 256)):
    sizes = Sizes(ranks, tokens=2048, k=k, dim=192)
    counts = draw.binomial(k, 1 / ranks, (2048, ranks))
    assert counts.max() <= 2 * sizes.room
    assert sizes.room <= max(k / ranks + 7, 0.4 * k)


@pytest.mark.parametrize('ranks', [2, 32, 1024])
def test_a_step_holds_no_more_however_many_devices(ranks):
  sizes = Sizes(ranks, tokens=4096, k=256, dim=720)
  held = sizes.step_tokens * ranks * 720 * 4
  assert held <= max(exchange.STEP_BYTES, ranks * 720 * 4)
  steps = -(-4096 // sizes.step_tokens)
  assert steps * sizes.step_tokens < 4096 + steps
