"""Token rounding against loops over experts and tokens."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moejax import dispatch, experts, moe, routers
from moejax.routers.token_rounding import rounded
from moejax.types import Chosen, Pairs

E, K, D = 8, 3, 16


def router(tile_rows, k=K):
  inner = routers.Router(
    score=routers.scores.Linear(num_experts=E),
    k=k,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  return routers.TokenRounding(inner, tile_rows=tile_rows)


def slow_rounded(wanted, tokens, tile, most):
  """Rows of each expert, one tile at a time."""
  if tokens < tile:
    return list(wanted)
  rows = [w // tile * tile for w in wanted]
  total = min((sum(wanted) + tile // 2) // tile, most // tile) * tile
  by_rest = sorted(range(len(wanted)), key=lambda e: (-(wanted[e] % tile), e))
  for e in by_rest:
    grows = wanted[e] % tile and rows[e] + tile <= tokens
    if grows and sum(rows) + tile <= total:
      rows[e] += tile
  return rows


def slow_pairs(chosen, valid, tile):
  """{(token, expert): weight} after rounding."""
  ids, weights, logits = map(
    np.asarray, (chosen.ids_NK, chosen.weights_NK, chosen.logits_NE)
  )
  prob = np.exp(logits.astype(np.float64))
  prob /= prob.sum(-1, keepdims=True)
  columns = [{} for _ in range(E)]
  for (n, j), e in np.ndenumerate(ids):
    if e < E:
      columns[e][n] = weights[n, j]
  rows = slow_rounded(list(map(len, columns)), valid.sum(), tile, ids.size)
  pairs = {}
  for e, column in enumerate(columns):
    best = sorted(column, key=lambda n: -column[n])
    others = [n for n in range(len(ids)) if valid[n] and n not in column]
    others.sort(key=lambda n: -prob[n, e])
    taken = (best + others)[: rows[e]]
    pairs |= {(n, e): column.get(n, prob[n, e]) for n in taken}
  return pairs


@functools.partial(jax.jit, static_argnums=0)
def init(module, x, ctx):
  return module.init(jax.random.key(1), x, ctx)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, variables, x, ctx):
  return module.apply(variables, x, ctx, mutable=['stats'])


def routed(small, tile, padding=(0,), length=32, seed=0, scale=1.0):
  batch = small.rows(seed, length=length, padding=padding)
  x = scale + jax.random.normal(jax.random.key(seed), (2 * length, D))
  module = router(tile)
  ctx = small.context(batch)
  variables = init(module, x, ctx)
  out, sown = apply(module, variables, x, small.context(batch, train=True))
  chosen, _ = apply(module, variables, x, ctx)
  return out, chosen, batch['segments'].reshape(-1) > 0, sown['stats']


@pytest.mark.parametrize(
  'tile,padding,length',
  [
    (8, (0,), 32),  # divides N * K
    (1, (0,), 8),
    # does not: 150 pairs
    pytest.param(16, (0,), 25, marks=pytest.mark.slow),
    (8, (5, 0), 32),  # nor with padding
    (20, (0,), 10),  # a tile is all tokens
    (20, (3, 0), 10),  # more than the real tokens: left alone
    (8, (16, 16), 16),  # no real token at all
  ],
)
def test_rounding_equals_a_loop(small, tile, padding, length):
  out, chosen, valid, stats = routed(small, tile, padding, length)
  want = slow_pairs(chosen, valid, tile)
  assert isinstance(out, Pairs) and isinstance(chosen, Chosen)
  tokens, ids, weights = map(
    np.asarray, (out.tokens_R, out.ids_R, out.weights_R)
  )
  assert len(ids) == chosen.ids_NK.size and (np.diff(ids) >= 0).all()
  assert out.tokens_R.dtype == out.ids_R.dtype == jnp.int32
  live = ids < E
  keys = zip(tokens[live], ids[live], strict=True)
  got = dict(zip(keys, weights[live], strict=True))
  assert live.sum() == len(got)  # no pair is there twice
  assert got.keys() == want.keys()
  for pair in want:
    np.testing.assert_allclose(got[pair], want[pair], rtol=1e-5)
  assert (weights[~live] == 0).all()
  assert valid[tokens[live]].all()
  counts = np.asarray(out.counts_E())
  before = np.asarray(chosen.counts_E())
  if valid.sum() >= tile:
    assert (counts % tile == 0).all()
  moved = np.abs(counts - before).sum() / max(before.sum(), 1)
  np.testing.assert_allclose(stats['rounded_frac'][0], moved, rtol=1e-6)


def test_the_total_is_static_where_the_tile_divides_it(small):
  out, chosen, _, _ = routed(small, 8)
  assert (np.asarray(chosen.counts_E()) % 8 > 0).any()
  assert (np.asarray(out.ids_R) < E).all()


def test_weights_have_the_gradient_of_what_they_are(small):
  batch = small.rows(0, length=32, padding=(5, 0))
  x = jax.random.normal(jax.random.key(0), (64, D))
  module, ctx = router(8), small.context(batch, train=True)
  variables = init(module, x, ctx)
  out, _ = apply(module, variables, x, ctx)
  chosen, _ = apply(module, variables, x, small.context(batch))
  upstream = np.random.default_rng(2).normal(size=out.ids_R.shape)
  tokens, ids = np.asarray(out.tokens_R), np.asarray(out.ids_R)
  picked = np.asarray(chosen.ids_NK)
  was = (picked[tokens] == ids[:, None]).any(-1)
  live = ids < E
  assert (live & was).any() and (live & ~was).any()  # both kinds are there

  def ours(variables):
    return (module.apply(variables, x, ctx).weights_R * upstream).sum()

  def formula(variables):
    kernel = variables['params']['inner']['score']['kernel']
    power = jnp.exp(x @ jax.tree.leaves(kernel)[0])
    among = (picked[..., None] == np.arange(E)).any(1)
    weight = jnp.where(
      was,
      (power / jnp.maximum((power * among).sum(-1, keepdims=True), 1e-9))[
        tokens, ids % E
      ],
      (power / power.sum(-1, keepdims=True))[tokens, ids % E],
    )
    return (jnp.where(live, weight, 0) * upstream).sum()

  got, want = (jax.jit(jax.grad(f))(variables) for f in (ours, formula))
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


_rounded = jax.jit(rounded, static_argnums=(2, 3))
TOKENS = 400


@given(
  wanted=st.lists(st.integers(0, TOKENS), min_size=E, max_size=E),
  tile=st.sampled_from([1, 7, 64, 128]),
)
@example(wanted=[TOKENS] * 2 + [0] * 6, tile=128)
@example(wanted=[0] * 8, tile=128)
@settings(max_examples=60, deadline=None)
def test_any_counts_equal_a_loop_and_move_by_less_than_a_tile(wanted, tile):
  most = 3200
  got = _rounded(jnp.array(wanted), jnp.int32(TOKENS), tile, most)
  assert got.tolist() == slow_rounded(wanted, TOKENS, tile, most)
  got = np.asarray(got)
  assert (np.abs(got - wanted) < tile).all() and (got % tile == 0).all()
  assert (got <= TOKENS).all() and got.sum() <= most


def layer(tile, dispatcher):
  return moe.Moe(
    router=router(tile),
    dispatch=dispatcher,
    experts=experts.Glu(hidden=8, num_experts=E),
  )


@pytest.mark.slow  # two layers to compile; their parts are tested alone
def test_a_layer_trains_through_its_router_as_the_mask_does(small):
  batch = small.rows(0, length=32, padding=(5, 0))
  x = jax.random.normal(jax.random.key(0), (2, 32, D))
  ctx = small.context(batch, train=True)
  variables = nn.unbox(
    layer(8, dispatch.Sort()).init(jax.random.key(1), x, ctx)
  )
  params = {'params': variables['params']}

  def loss(params, x, dispatcher):
    y = layer(8, dispatcher).apply(params, x, ctx)
    return jnp.square(y).sum()

  gradients = [
    jax.jit(jax.grad(lambda p, x, d=d: loss(p, x, d), argnums=(0, 1)))(
      params, x
    )
    for d in (dispatch.Sort(), dispatch.Mask())
  ]
  for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  score = gradients[0][0]['params']['router']['inner']['score']['kernel']
  assert (np.abs(score).max(0) > 0).all()


def test_outside_training_it_is_the_inner_router(small):
  batch = small.rows(0, padding=(3, 0))
  x = jax.random.normal(jax.random.key(0), (16, D))
  # More rows to a tile than there are tokens: nothing is rounded here.
  module, ctx = router(128), small.context(batch)
  variables = init(module, x, ctx)
  out, _ = apply(module, variables, x, ctx)
  inner = {'params': variables['params']['inner']}
  want, _ = apply(module.inner, inner, x, ctx)
  for name in ('ids_NK', 'weights_NK', 'logits_NE'):
    np.testing.assert_array_equal(getattr(out, name), getattr(want, name))
  assert module.causal and module.k == K
  assert module.flops(D) == module.inner.flops(D)


@pytest.mark.parametrize(
  'tile,message',
  [(0, 'tile_rows=0 must be at'), (17, 'tile_rows=17 is more than the 16')],
)
def test_tiles_that_cannot_be_filled_are_refused(small, tile, message):
  x = jnp.zeros((16, D))
  ctx = small.context(small.rows(0), train=True)
  with pytest.raises(ValueError, match=message):
    router(tile).init(jax.random.key(0), x, ctx)
