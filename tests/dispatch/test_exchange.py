"""Exchanges by hand: eight devices equal one, whatever the load."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from moejax import deferred, dispatch, experts, sharding
from moejax.dispatch import capacity, segments
from moejax.types import Chosen, Padded

pytestmark = pytest.mark.usefixtures('quick_compilation')
D, F, N, K = 16, 8, 48, 3
LOADS = ('balanced', 'one_expert', 'no_expert')
DEFAULTS = [dispatch.Ring(), dispatch.AllToAll(), dispatch.RaggedAllToAll()]
STAGED = [
  dispatch.Ring(stages=3),
  dispatch.AllToAll(room=0.7, stages=2),
  dispatch.RaggedAllToAll(room=0.6, stages=2),
  dispatch.AllToAll(room=0.7, keep_first=False),
  dispatch.RaggedAllToAll(room=0.6, keep_first=False),
]


# Mesh axes over which tokens are cut.
CUT = ('data', 'expert')


def label(value):
  if isinstance(value, nn.Module):
    return f'{type(value).__name__}-{value.stages}'
  return str(value)


def mesh(data, expert):
  return jax.make_mesh(
    (data, expert),
    ('data', 'expert'),
    axis_types=(AxisType.Auto,) * 2,
    devices=jax.devices()[: data * expert],
  )


def load(name, num_experts):
  """(assignment, x_ND) of a load by name."""
  rng = np.random.default_rng(LOADS.index(name))
  k = min(K, num_experts)
  ids = np.stack([rng.permutation(num_experts)[:k] for _ in range(N)])
  x = rng.normal(size=(N, D)).astype(np.float32)
  if name == 'one_expert':
    ids[:] = num_experts - 1
  if name == 'no_expert':
    ids[::3], ids[4, 1:] = num_experts, num_experts
    x[::3] = np.nan
  weights = np.where(ids < num_experts, rng.normal(size=ids.shape), 0)
  logits = np.zeros((N, num_experts), np.float32)
  ids, weights = ids.astype(np.int32), weights.astype(np.float32)
  return Chosen(jnp.asarray(ids), jnp.asarray(weights), logits), x


@functools.cache
def params(num_experts):
  rng = np.random.default_rng(7)
  shapes = {'down': (F, D), 'gate': (D, F), 'up': (D, F)}
  return {
    name: rng.normal(size=(num_experts, *shape), scale=0.3).astype(np.float32)
    for name, shape in shapes.items()
  }


UPSTREAM = np.random.default_rng(8).normal(size=(N, D)).astype(np.float32)


def oracle(assignment, x):
  """Output and all gradients in float64: choice by choice, derived by hand."""
  ids = np.asarray(assignment.ids_NK)
  weights = np.asarray(assignment.weights_NK, np.float64)
  num_experts = assignment.num_experts
  p = {k: np.asarray(w, np.float64) for k, w in params(num_experts).items()}
  x, up = np.nan_to_num(x.astype(np.float64)), UPSTREAM.astype(np.float64)
  y, dx, dweights = np.zeros_like(x), np.zeros_like(x), np.zeros_like(weights)
  dp = {k: np.zeros_like(w) for k, w in p.items()}
  for n, k in zip(*np.nonzero(ids < num_experts), strict=True):
    e, w = ids[n, k], weights[n, k]
    gate, lift = x[n] @ p['gate'][e], x[n] @ p['up'][e]
    sigmoid = 1 / (1 + np.exp(-gate))
    hidden = gate * sigmoid * lift
    out = hidden @ p['down'][e]
    y[n] += w * out
    dweights[n, k] = up[n] @ out
    dhidden = w * (p['down'][e] @ up[n])
    dlift = dhidden * gate * sigmoid
    dgate = dhidden * lift * sigmoid * (1 + gate * (1 - sigmoid))
    dp['down'][e] += np.outer(hidden, w * up[n])
    dp['gate'][e] += np.outer(x[n], dgate)
    dp['up'][e] += np.outer(x[n], dlift)
    dx[n] += p['gate'][e] @ dgate + p['up'][e] @ dlift
  return y, (dx, dweights, dp)


def compiled(dispatcher, where, num_experts, tokens=N):
  """The program: output, gradients, what was sown; compiled for a mesh."""
  module = experts.Glu(hidden=F, num_experts=num_experts)

  def run(assignment, x, matrices, upstream):
    def forward(x, weights, matrices):
      return dispatcher.apply(
        {},
        assignment.replace(weights_NK=weights),
        x,
        lambda rows: module.apply({'params': matrices}, rows),
        mutable=['stats'],
      )

    args = (x, assignment.weights_NK, matrices)
    y, pull, sown = jax.vjp(forward, *args, has_aux=True)
    return y, pull(upstream), sown['stats']

  cut = PartitionSpec(CUT)
  over = CUT[1:]
  divides = num_experts % math.prod(where.shape[a] for a in over) == 0
  held = PartitionSpec(over if divides else None)
  k = min(K, num_experts)
  shapes = dict(ids_NK=(k, jnp.int32), weights_NK=(k, jnp.float32))
  shapes['logits_NE'] = (num_experts, jnp.float32)

  def spec(shape, dtype, of):
    placed = NamedSharding(where, of)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

  chosen = Chosen(
    **{a: spec((tokens, s), t, cut) for a, (s, t) in shapes.items()}
  )
  x = spec((tokens, D), jnp.float32, cut)
  matrices = {
    name: spec(w.shape, w.dtype, held)
    for name, w in params(num_experts).items()
  }
  args = (chosen, x, matrices, x)
  with sharding.use(where, sharding.RULES):
    built = jax.jit(run).lower(*args).compile()
  placed = jax.tree.map(lambda a: a.sharding, args)

  def call(assignment, x):
    given = (assignment, x, params(num_experts), UPSTREAM)
    return built(*jax.device_put(given, placed))

  return built, call


def rms(got, want):
  want = np.asarray(want, np.float64)
  error = np.square(np.asarray(got, np.float64) - want).mean()
  return np.sqrt(error / np.square(want).mean())


def assert_equals_one_device(call, num_experts):
  for name in LOADS:
    assignment, x = load(name, num_experts)
    y, gradients, stats = call(assignment, x)
    want = oracle(assignment, x)
    assert rms(y, want[0]) < 1e-6, name
    leaves = zip(*map(jax.tree.leaves, (gradients, want[1])), strict=True)
    for got, exact in leaves:
      assert rms(got, exact) < 1e-5, name
    assert stats['dropped_frac'] == (0.0,)
    lost = (np.asarray(assignment.ids_NK) == num_experts).all(-1)
    assert not np.asarray(y)[lost].any()
    for leaf in jax.tree.leaves((y, gradients, stats)):
      seen = {}
      for shard in leaf.addressable_shards:
        data = np.asarray(shard.data).tobytes()
        assert seen.setdefault(str(shard.index), data) == data, name
    yield name, {k: float(v[0]) for k, v in stats.items()}


@pytest.mark.parametrize('dispatcher', DEFAULTS, ids=label)
def test_four_ranks_equal_a_loop_in_float64_for_every_load(dispatcher):
  _, call = compiled(dispatcher, mesh(2, 4), 8)
  told = dict(assert_equals_one_device(call, 8))
  if 'exchange_rounds' in told['balanced']:
    # All choices go to one rank: P times its fair share of rows, room is 1.5.
    assert told['one_expert']['exchange_rounds'] == 3
    assert told['one_expert']['exchange_late_frac'] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize('dispatcher', DEFAULTS + STAGED, ids=label)
@pytest.mark.parametrize(
  'axes,num_experts',
  [
    ((1, 2), 8),
    ((1, 4), 8),
    ((1, 8), 8),
    ((4, 2), 8),
    ((8, 1), 8),
    ((1, 8), 2),  # four ranks share an expert
    ((1, 4), 6),  # blocks of three experts on two ranks
  ],
)
def test_any_ranks_equal_a_loop_in_float64(dispatcher, axes, num_experts):
  _, call = compiled(dispatcher, mesh(*axes), num_experts)
  assert len(list(assert_equals_one_device(call, num_experts))) == len(LOADS)


@pytest.mark.slow
@pytest.mark.parametrize('dispatcher', DEFAULTS + STAGED, ids=label)
def test_tokens_that_do_not_divide_equal_the_mask(dispatcher):
  rng = np.random.default_rng(0)
  ids = np.stack([rng.permutation(8)[:K] for _ in range(5)]).astype(np.int32)
  weights = rng.normal(size=ids.shape).astype(np.float32)
  chosen = Chosen(ids, weights, np.zeros((5, 8), np.float32))
  x = rng.normal(size=(5, D)).astype(np.float32)
  module = experts.Glu(hidden=F, num_experts=8)

  def run(kind):
    rows = functools.partial(module.apply, {'params': params(8)})
    return jax.jit(lambda: kind.apply({}, chosen, x, rows))()

  with sharding.use(mesh(1, 8), sharding.RULES):
    got = run(dispatcher)
  assert rms(got, run(dispatch.Mask())) < 1e-6


# Parts.


def twice(rows, matrices):
  """An expert that is no usual feed-forward."""
  first = rows.dot(matrices['gate']).map(jnp.tanh)
  both = first.map(lambda a, b: a * b, rows.dot(matrices['up']))
  return both.dot(matrices['down'])


def test_deferred_rows_do_what_was_asked_of_them():
  rows = Padded(jnp.asarray(UPSTREAM).reshape(8, 6, D))
  noted = deferred.Deferred(D)
  done = twice(noted, params(8))
  assert (noted.width, done.width, len(done.matrices)) == (D, D, 3)
  given = [jnp.asarray(w) for w in done.matrices]
  want = twice(rows, params(8)).rows_ECD
  np.testing.assert_array_equal(done(rows, given).rows_ECD, want)
  mlp = experts.Mlp(hidden=F, num_experts=8)
  p = {name: params(8)[name] for name in ('up', 'down')}
  noted = mlp.apply({'params': p}, deferred.Deferred(D))
  want = mlp.apply({'params': p}, rows).rows_ECD
  got = noted(rows, noted.matrices).rows_ECD
  np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize('dispatcher', DEFAULTS, ids=label)
def test_an_expert_of_other_products_equals_the_mask(dispatcher):
  assignment, x = load('balanced', 8)

  def run(kind):
    def loss(x, p):
      y = kind.apply({}, assignment, x, lambda rows: twice(rows, p))
      return (y * UPSTREAM).sum()

    return jax.jit(jax.grad(loss, (0, 1)))(x, params(8))

  with sharding.use(mesh(2, 4), sharding.RULES):
    got = run(dispatcher)
  leaves = zip(*map(jax.tree.leaves, (got, run(dispatch.Mask()))), strict=True)
  for a, b in leaves:
    assert rms(a, b) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('kind', [type(d) for d in DEFAULTS])
def test_a_limit_drops_what_the_sort_drops(kind):
  assignment, x = load('one_expert', 8)
  options = dict(capacity_factor=0.5, drop='weight')
  limit = functools.partial(capacity.limit, **options)
  module = experts.Glu(hidden=F, num_experts=8)

  def run(dispatcher):
    rows = functools.partial(module.apply, {'params': params(8)})
    return jax.jit(
      lambda: dispatcher.apply({}, assignment, x, rows, mutable=['stats'])
    )()

  want, sown = run(dispatch.Sort(**options))
  with sharding.use(mesh(2, 4), sharding.RULES):
    got, told = run(kind(limit=limit))
  assert rms(got, want) < 1e-6
  np.testing.assert_array_equal(
    told['stats']['dropped_frac'], sown['stats']['dropped_frac']
  )
  assert sown['stats']['dropped_frac'][0] > 0.9


@pytest.mark.parametrize(
  'shape,most,rows,size,begin',
  [
    ((5,), 3, 16, 7, 3),
    ((), 3, 16, 7, 3),  # numbers go by lines: not one is full,
    ((), 200, 1100, 500, 130),  # or several are
  ],
)
def test_rows_shipped_lie_where_a_loop_puts_them_and_gradients_go_back(
  shape, most, rows, size, begin
):
  ranks, held = 4, 2
  rng = np.random.default_rng(0)
  counts = rng.integers(0, most, (ranks, ranks * held)).astype(np.int32)
  counts[1], counts[2, 3] = 0, 2 * most
  assert (counts.sum(1) <= rows).all()
  a = rng.normal(size=(ranks, rows, *shape)).astype(np.float32)
  upstream = rng.normal(size=(ranks, size, *shape)).astype(np.float32)

  def own(a, upstream, counts):
    rank = jax.lax.axis_index('expert')
    runs = segments.window(counts, rank, begin, size)
    out, pull = jax.vjp(
      lambda a: segments.ship(a, runs, size, ('expert',)), a[0]
    )
    return out[None], pull(upstream[0])[0][None]

  cut = PartitionSpec('expert')
  f = jax.shard_map(
    own,
    mesh=mesh(1, 4),
    in_specs=(cut, cut, PartitionSpec()),
    out_specs=cut,
    check_vma=False,
  )
  got, back = jax.jit(f)(a, upstream, counts)
  starts = np.cumsum(counts, 1) - counts
  want, want_back = np.zeros_like(upstream), np.zeros_like(a)
  for q in range(ranks):
    place = 0
    for e in range(q * held, (q + 1) * held):
      for s in range(ranks):
        for i in range(counts[s, e]):
          if begin <= place < begin + size:
            want[q, place - begin] = a[s, starts[s, e] + i]
            want_back[s, starts[s, e] + i] = upstream[q, place - begin]
          place += 1
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(back, want_back)


@pytest.mark.parametrize(
  'dispatcher,message',
  [
    (dispatch.Ring(stages=0), 'stages=0 must be at least 1'),
    (dispatch.AllToAll(room=0), 'room=0 leaves no row in a buffer'),
    (dispatch.RaggedAllToAll(room=-1), 'room=-1 leaves no row'),
  ],
  ids=label,
)
def test_settings_that_cannot_work_are_refused(dispatcher, message):
  with pytest.raises(ValueError, match=message) as error:
    compiled(dispatcher, mesh(2, 4), 8)
  assert '\n' not in str(error.value)
