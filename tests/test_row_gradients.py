"""Updates of the rows that were read, against loops and whole tables."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from moejax import optim, sharding, step
from moejax.memory import tables, taps
from moejax.optim.adamw import Rule, aligned_norm
from moejax.parts import Parts
from moejax.types import Context, Shared
from pallas_kernels.table_lookup.api import touched_rows

pytestmark = pytest.mark.usefixtures('quick_compilation')
RATE = 0.05


class Plain:
  """Descent, or Adagrad: a row without a gradient stays as it is."""

  def __init__(self, direction, decay=0.0):
    self.direction, self.decay = direction, decay

  def label(self, parameter, matrix=None):
    del parameter, matrix
    return 'plain'

  def rules(self, parameters):
    del parameters
    return {'plain': Rule(self.direction, self.decay, aligned_norm)}


def memory(shared):
  """Two layers that read two tables each, their own or windows of shared."""
  table = common.table(64, dim=6, std=0.3)
  names = ('values', 'pre_values')
  tables = dict.fromkeys(names, table)
  if shared:
    window = dict(kind='memory.tables.Window', dim=6, stride=30)
    tables = {n: common.node(**window, of=n) for n in names}
  node = common.node('memory.Tucker', keys=8, k=3, head_dim=8, **tables)
  whole = dict.fromkeys(names, common.table(100, dim=6, std=0.3))
  return node, whole if shared else {}


def parts(small, rows, shared=False, optimizer=None, clip=1.0, **train):
  node, tables = memory(shared)
  block = common.block(common.attention(2, 1), common.beside(node, 16))
  config = small.config(model=small.model({'block': block}), losses={})
  config.model.repeats, config.model.shared = 2, tables
  config.optim.schedule = common.node('optim.constant', peak=RATE)
  config.optim.clip_norm = clip
  if rows:
    config.optim.groups = (('values/rows$', {'rows': True}),)
  # Micro-batches and recomputation in one case.
  config.model.remat = 'full' if train.get('accumulate', 1) > 1 else None
  config.train.update(train)
  made = Parts(config)
  if optimizer is not None:
    made.optimizer = optim.Chain(
      optimizer,
      schedule=functools.partial(optim.constant, peak=RATE),
      clip_norm=clip,
      groups=made.optimizer.groups,
    )
  return made


def trained(small, made, steps=2, **rows):
  """The last state and metrics, on one device, without a mesh."""
  accumulate = made.config.train.accumulate
  taken = jax.jit(
    step.train_step(
      made.model, made.tx, loss=made.loss, weights={}, accumulate=accumulate
    )
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_count', lambda: 1)
    with sharding.use(made.mesh, made.rules):
      state = jax.tree.map(np.asarray, made.new_state())
  for seed in range(steps):
    state, values = taken(state, small.rows(seed, batch=8, **rows))
  return state, values


@pytest.mark.slow
@pytest.mark.parametrize(
  'shared,direction,clip,accumulate',
  [
    (False, optax.identity(), None, 1),
    (True, optax.identity(), 0.1, 2),
    (True, optax.scale_by_rss(0.1), 0.1, 1),
  ],
)
def test_plain_descent_and_adagrad_by_rows_equal_those_of_whole_tables(
  small, shared, direction, clip, accumulate
):
  """With clipping, windows, micro-batches and rematerialisation."""
  (whole, a), (rows, b) = (
    trained(
      small,
      parts(
        small,
        by_rows,
        shared,
        Plain(direction),
        clip,
        accumulate=accumulate,
      ),
      padding=(0, 3),
    )
    for by_rows in (False, True)
  )
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)
  assert jax.tree.structure(whole) == jax.tree.structure(rows)
  for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(rows), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


class Twice(nn.Module):
  """A layer that reads two windows of one table."""

  first: nn.Module
  second: nn.Module

  @nn.compact
  def __call__(self, ids, weights, x, ctx):
    a = tables.rows_of(self.first, 6, ctx, ids, 4).sums(weights)
    b = tables.rows_of(self.second, 6, ctx, ids[:, :2], 4).products(x)
    return jnp.sin(a).sum() + jnp.cos(b).sum()


@pytest.mark.parametrize('rows', [True, False])
def test_factors_of_all_readings_of_a_table_make_its_gradient(rows):
  """Of sums with parts and of products, of windows, with other rows each."""
  draw = np.random.default_rng(0)
  ids = jnp.asarray(draw.integers(0, 4, (5, 3)), jnp.int32)
  floats = (draw.normal(size=s) for s in ((5, 3, 2), (5, 6), (9, 6)))
  weights, x, table = (jnp.asarray(a, jnp.float32) for a in floats)
  window = functools.partial(tables.Window, 'of', stride=3)
  layer = Twice(window(), window())

  def f(table, zeros, **collections):
    shared = {'of': Shared({'params': {'rows': table}}, tables.Table(9))}
    zeros5 = jnp.zeros((1, 5), jnp.int32)
    ctx = Context(zeros5, zeros5, zeros5, shared=shared, layer=jnp.int32(2))
    return layer.apply(zeros, ids, weights, x, ctx, **collections)

  shapes = jax.eval_shape(lambda t: f(t, {}, mutable=['taps'])[1], table)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
  paths = ['shared_of/rows'] if rows else []
  found = taps.only(zeros['taps'], paths)
  assert bool(found) == rows
  want = jax.jit(jax.grad(lambda t: f(t, {})))(table)
  if not rows:
    return
  run = jax.grad(
    lambda z: f(table, {'taps': z}, mutable=['reads']), has_aux=True
  )
  dtaps, written = jax.jit(run)(found)
  (factors,) = taps.factors(dtaps, written['reads'], {paths[0]: 9}).values()
  slots, values = jax.jit(functools.partial(touched_rows, slots=9))(
    factors.ids_NK, factors.weights_NKC, factors.vectors_ND
  )
  got = jnp.zeros((9, 6)).at[slots].set(values, mode='drop')
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_layer_that_reads_through_one_window_twice_is_refused():
  window = tables.Window('of')
  shared = {
    'of': Shared({'params': {'rows': jnp.ones((4, 6))}}, tables.Table(4))
  }
  ones = jnp.zeros((1, 5), jnp.int32)
  ctx = Context(ones, ones, ones, shared=shared, layer=jnp.int32(0))

  class Same(nn.Module):
    of: nn.Module

    @nn.compact
    def __call__(self):
      for _ in range(2):
        tables.rows_of(self.of, 6, ctx, ones, 4).sums(jnp.ones((1, 5)))

  with pytest.raises(ValueError, match='reads the table of twice'):
    Same(window).apply({}, mutable=['taps'])


def chained(rows, **group):
  """A transformation for one table of 2 layers of 5 rows, and one vector."""
  params = {'t': {'rows': jnp.ones((2, 5, 3))}, 'w': jnp.ones((4, 4))}
  names = {'t': {'rows': ('layers', 'slots', 'value')}, 'w': (None, None)}
  chain = optim.Chain(
    optim.AdamW(b1=0.8, b2=0.9, weight_decay=0.3),
    schedule=functools.partial(optim.constant, peak=RATE),
    clip_norm=2.0,
    groups=(('rows', {'rows': rows, **group}),),
  )
  tx = chain.transformation(params, names, total_steps=20)
  return tx, params


def drawn(count, seed=0):
  """For each step (slots, rows), of 10 rows; 10 means "none"."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    live = np.sort(rng.choice(10, 4, replace=False))
    slots = np.append(live, [10, 10]).astype(np.int32)
    rows = rng.normal(size=(6, 3)).astype(np.float32)
    rows[4:] = 0
    yield slots, rows


def test_adam_by_rows_equals_a_loop_over_the_rows_that_are_read():
  tx, params = chained(True, lr_scale=2.0)
  state = tx.init(params)
  table, m, v = (np.full((10, 3), x) for x in (1.0, 0.0, 0.0))
  w = np.zeros((4, 4), np.float32)
  run = jax.jit(tx.step)
  for count, (slots, rows) in enumerate(drawn(6), 1):
    grads = {'t': {'rows': optim.Rows(slots, rows)}, 'w': w}
    params, state = run(grads, state, params)
    by = min(1.0, 2.0 / np.sqrt((rows.astype(np.float64) ** 2).sum()))
    for slot, grad in zip(slots[:4], by * rows[:4], strict=True):
      m[slot] = 0.8 * m[slot] + 0.2 * grad
      v[slot] = 0.9 * v[slot] + 0.1 * grad**2
      mean, square = m[slot] / (1 - 0.8**count), v[slot] / (1 - 0.9**count)
      step = mean / (np.sqrt(square) + 1e-8) + 0.3 * table[slot]
      table[slot] -= 2 * RATE * step
  np.testing.assert_allclose(
    params['t']['rows'].reshape(10, 3), table, rtol=1e-5
  )


def test_adam_by_rows_equals_torch_s_sparse_adam():
  torch = pytest.importorskip('torch')
  tx, params = chained(True, weight_decay=0.0)
  ours = tx.init(params)
  theirs = torch.ones(10, 3, requires_grad=True)
  peer = torch.optim.SparseAdam([theirs], RATE, (0.8, 0.9), 1e-8)
  run, w = jax.jit(tx.step), np.zeros((4, 4), np.float32)
  for slots, rows in drawn(5):
    rows = 0.1 * rows  # below the norm that is clipped
    grads = {'t': {'rows': optim.Rows(slots, rows)}, 'w': w}
    params, ours = run(grads, ours, params)
    ids, values = (torch.from_numpy(a[:4]) for a in (slots, rows))
    theirs.grad = torch.sparse_coo_tensor(
      ids.long()[None], values, (10, 3), check_invariants=True
    )
    peer.step()
  np.testing.assert_allclose(
    params['t']['rows'].reshape(10, 3), theirs.detach().numpy(), rtol=1e-5
  )


def test_a_step_that_is_not_finite_leaves_every_bit_of_tables_and_moments():
  tx, params = chained(True)
  state, w = tx.init(params), np.zeros((4, 4), np.float32)
  (first, rows), (second, bad) = drawn(2)
  bad[1, 1] = np.nan
  run = jax.jit(tx.step)
  kept = run({'t': {'rows': optim.Rows(first, rows)}, 'w': w}, state, params)
  params, state = run(
    {'t': {'rows': optim.Rows(second, bad)}, 'w': w}, *kept[::-1]
  )
  assert state.skipped == 1
  now = jax.tree.leaves((params, state.inner))
  before = jax.tree.leaves((kept[0], kept[1].inner))
  for a, b in zip(now, before, strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_no_array_of_a_table_s_size_is_made(small, one_device):
  """Beside the tables and moments themselves, which are updated in place."""

  def temporary(slots):
    node = common.node(
      'memory.ProductKey',
      keys=16,
      k=2,
      heads=1,
      head_dim=4,
      values=common.node('memory.tables.Window', of='values'),
    )
    made = parts(small, True)
    config = made.config
    block = common.block(common.attention(2, 1), node)
    config.model = small.model({'block': block})
    config.model.shared = {'values': common.table(slots)}
    made = Parts(config)
    with sharding.use(made.mesh, made.rules):
      batch = {n: made.abstract_batch[n] for n in step.BATCH}
      lowered = made.train_step.lower(made.abstract_state, batch)
      return lowered.compile().memory_analysis().temp_size_in_bytes

  few, many = temporary(2**10), temporary(2**14)
  assert many - few < 2**14 * 16 * 4 / 16


@pytest.mark.slow
def test_batches_over_devices_give_what_one_device_gives(small):
  made = parts(small, True, shared=True)
  alone, _ = trained(small, made, steps=1)
  with sharding.use(made.mesh, made.rules):
    batch = sharding.put_batch(small.rows(0, batch=8), made.batch_sharding)
    spread, _ = made.train_step(made.new_state(), batch)
  for a, b in zip(
    jax.tree.leaves(alone.opt_state),
    jax.tree.leaves(spread.opt_state),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
  'group,message',
  [
    ((r'halves/keys$', {'rows': True}), 'is no table of a memory'),
    (('values/rows$', {'rows': True, 'frozen': True}), 'frozen=True and rows'),
  ],
)
def test_rows_of_what_is_no_table_are_refused(small, group, message):
  made = parts(small, False)
  made.config.optim.groups = (group,)
  with pytest.raises(ValueError, match=message):
    Parts(made.config).tx  # noqa: B018


def test_tables_that_the_mesh_cuts_are_refused_by_rows(small):
  made = parts(small, True, shared=False)
  made.config.mesh = dict(made.config.mesh, data=2, expert=4)
  made.config.rules = (
    *((n, to) for n, to in made.config.rules if n != 'slots'),
    ('slots', 'expert'),
  )
  made = Parts(made.config)
  with (
    sharding.use(made.mesh, made.rules),
    pytest.raises(ValueError, match="cut 'slots' over the mesh axes expert"),
  ):
    jax.eval_shape(made.train_step, made.abstract_state, made.abstract_batch)


def test_a_table_that_no_layer_reads_is_refused_by_rows(small):
  made = parts(small, True, shared=True)
  made.config.model.shared = {
    **made.config.model.shared,
    'idle_values': common.table(9),
  }
  made = Parts(made.config)
  with pytest.raises(ValueError, match='idle_values/rows .* no layer reads'):
    jax.eval_shape(made.train_step, made.abstract_state, made.abstract_batch)


def test_tables_that_stages_read_are_refused_by_rows(small):
  made = parts(small, True, shared=True)
  common.pipeline(made.config, stages=1, microbatches=1)
  made = Parts(made.config)
  with pytest.raises(ValueError, match='read it in parts of a batch'):
    jax.eval_shape(made.train_step, made.abstract_state, made.abstract_batch)
