"""Routers and their parts: score, affinity, select, weigh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import routers
from moejax.types import Chosen

SELECTED = 3


def logits(tokens=17, experts=8, seed=0, scale=2.0):
  rng = np.random.default_rng(seed)
  return rng.normal(0, scale, (tokens, experts)).astype(np.float32)


def log_softmax(x):
  x = x.astype(np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def sigmoid(x):
  return 1 / (1 + np.exp(-x.astype(np.float64)))


# Scores.


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_scores_are_f32_and_depend_on_their_own_token_only(
  score, num_experts, dtype
):
  x = jax.random.normal(jax.random.key(0), (5, 16)).astype(dtype)
  variables = score.init(jax.random.key(1), x)
  out = score.apply(variables, x)
  assert out.shape == (5, num_experts) and out.dtype == jnp.float32
  changed = score.apply(variables, x.at[2].set(1.0))
  same = np.isclose(out, changed, rtol=1e-6).all(-1)
  np.testing.assert_array_equal(same, [True, True, False, True, True])


def test_linear_score_is_a_matrix_product_in_f32():
  x = jax.random.normal(jax.random.key(0), (5, 16)).astype(jnp.bfloat16)
  score = routers.scores.Linear(num_experts=4)
  variables = jax.tree.map(
    jnp.asarray, jax.jit(score.init)(jax.random.key(1), x)
  )
  kernel = jax.tree.leaves(variables)[0]
  want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
  np.testing.assert_allclose(score.apply(variables, x), want, rtol=1e-5)


# Affinities.


def test_affinities_are_finite_positive_and_rank_as_the_logits(affinity):
  x = np.sort(logits(scale=1e4), -1)
  out = np.asarray(affinity(x))
  assert np.isfinite(out).all() and (out >= 0).all() and (out <= 1).all()
  assert (np.diff(out, axis=-1) >= 0).all()


def test_affinities_equal_their_formulas():
  x = logits()
  np.testing.assert_allclose(
    routers.affinities.softmax(x), np.exp(log_softmax(x)), rtol=2e-6
  )
  np.testing.assert_allclose(
    routers.affinities.sigmoid(x), sigmoid(x), rtol=2e-6
  )


# Selection.


def test_selection_gives_k_distinct_int32_ids_in_range(select, num_experts):
  for seed in range(5):
    ids = select(jnp.asarray(logits(seed=seed, experts=num_experts)), SELECTED)
    assert ids.shape == (17, SELECTED) and ids.dtype == jnp.int32
    ids = np.asarray(ids)
    assert (ids >= 0).all() and (ids <= num_experts).all()
    for row in ids:
      real = row[row < num_experts]
      assert len(set(real)) == len(real)


def test_selection_breaks_ties_to_the_lower_id(select, num_experts):
  ids = select(jnp.zeros((4, num_experts)), SELECTED)
  np.testing.assert_array_equal(ids, np.tile(np.arange(SELECTED), (4, 1)))


def test_selection_does_not_look_at_other_tokens(select, num_experts):
  x = jnp.asarray(logits(experts=num_experts))
  alone = jnp.concatenate([select(x[i : i + 1], SELECTED) for i in range(17)])
  np.testing.assert_array_equal(select(x, SELECTED), alone)


def slow_top_k(row, k):
  return sorted(range(len(row)), key=lambda e: (-row[e], e))[:k]


def slow_group_limited(row, k, num_groups, kept_groups, best_per_group):
  size = len(row) // num_groups
  groups = [range(g * size, (g + 1) * size) for g in range(num_groups)]
  scores = [sum(sorted(row[list(g)])[-best_per_group:]) for g in groups]
  kept = slow_top_k(np.array(scores), kept_groups)
  allowed = [e for g in kept for e in groups[g]]
  return sorted(allowed, key=lambda e: (-row[e], e))[:k]


def test_top_k_equals_a_sort():
  x = logits().round(1)  # with ties
  got = routers.select.top_k(jnp.asarray(x), 3)
  np.testing.assert_array_equal(got, [slow_top_k(row, 3) for row in x])


@pytest.mark.parametrize(
  'num_groups,kept_groups,best', [(4, 2, 2), (4, 3, 1), (2, 1, 2), (8, 4, 1)]
)
def test_group_limited_equals_a_loop_over_groups(num_groups, kept_groups, best):
  x = logits(tokens=40)
  got = routers.select.group_limited(
    jnp.asarray(x),
    3,
    num_groups=num_groups,
    kept_groups=kept_groups,
    best_per_group=best,
  )
  want = [slow_group_limited(r, 3, num_groups, kept_groups, best) for r in x]
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(num_groups=3, kept_groups=1), 'num_groups=3 does not divide the 8'),
    (dict(num_groups=4, kept_groups=1), 'keep at least 2 groups'),
    (dict(num_groups=4, kept_groups=5), 'at most all'),
  ],
)
def test_group_limited_refuses_groups_that_cannot_work(fields, message):
  with pytest.raises(ValueError, match=message):
    routers.select.group_limited(jnp.zeros((2, 8)), 3, **fields)


# Weighing.


def chosen_of(x, k=SELECTED):
  ids = np.argsort(-x, -1, kind='stable')[:, :k]
  return np.take_along_axis(x, ids, -1)


def test_weights_are_f32_and_finite_with_their_gradients(weigh):
  for scale in (1.0, 1e4):
    x = logits(scale=scale)
    x[0] = -1e4
    x[1] = 1e4
    chosen = chosen_of(x)
    weights, pull = jax.vjp(weigh, chosen, x)
    assert weights.shape == chosen.shape and weights.dtype == jnp.float32
    assert np.isfinite(weights).all()
    for gradient in pull(jnp.ones_like(weights)):
      assert np.isfinite(gradient).all()


NORMALISED = [routers.weigh.softmax, routers.weigh.sigmoid]


@pytest.mark.parametrize('function', NORMALISED, ids=lambda f: f.__name__)
def test_normalised_weights_sum_to_the_scale(function):
  for x in (logits(), logits(scale=1e4), np.full((2, 8), -1e4, np.float32)):
    weights = np.asarray(function(chosen_of(x), x, scale=2.5))
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(-1), 2.5, rtol=1e-5)


@pytest.mark.parametrize('normalise', [True, False])
@pytest.mark.parametrize('name', ['softmax', 'sigmoid'])
def test_weights_equal_their_formula(name, normalise):
  x = logits()
  ids = np.argsort(-x, -1, kind='stable')[:, :SELECTED]
  whole = np.exp(log_softmax(x)) if name == 'softmax' else sigmoid(x)
  want = np.take_along_axis(whole, ids, -1)
  if normalise:
    want = want / want.sum(-1, keepdims=True)
  got = getattr(routers.weigh, name)(
    np.take_along_axis(x, ids, -1), x, normalise=normalise, scale=1.5
  )
  np.testing.assert_allclose(got, 1.5 * want, rtol=3e-6)


def test_raw_weights_are_the_logits():
  x = logits()
  np.testing.assert_array_equal(
    routers.weigh.raw(chosen_of(x), x), chosen_of(x)
  )


# Whole routers.


def routed(router, small, seed=0, padding=(3, 0), **variables):
  batch = small.rows(seed, padding=padding)
  x = jax.random.normal(jax.random.key(seed), (16, 16))
  if not variables:
    variables = jax.jit(router.init)(jax.random.key(1), x, small.context(batch))
    variables = jax.tree.map(jnp.asarray, variables)
  return batch, x, variables


def test_padding_goes_to_no_expert_with_weight_zero(router, num_experts, small):
  batch, x, variables = routed(router, small)
  out = router.apply(variables, x, small.context(batch))
  if not isinstance(out, Chosen):
    pytest.skip('tokens do not choose here')
  padded = batch['segments'].reshape(-1) == 0
  assert padded.sum() == 3
  assert (np.asarray(out.ids_NK)[padded] == num_experts).all()
  assert (np.asarray(out.weights_NK)[padded] == 0).all()
  assert (np.asarray(out.ids_NK)[~padded] < num_experts).all()
  assert out.counts_E().sum() == 13 * out.ids_NK.shape[1]


def test_a_causal_router_sees_its_own_token_only(router, small):
  if not router.causal:
    pytest.skip('not causal')
  batch, x, variables = routed(router, small, padding=(0,))
  apply = functools.partial(router.apply, variables, ctx=small.context(batch))
  before, after = apply(x), apply(x.at[8:].add(1.0))
  for name in ('ids_NK', 'weights_NK', 'logits_NE'):
    a, b = getattr(before, name), getattr(after, name)
    np.testing.assert_array_equal(a[:8], b[:8])


def biased(affinity=None):
  return routers.Router(
    score=routers.scores.Linear(num_experts=8),
    k=2,
    select=routers.select.top_k,
    weigh=routers.weigh.sigmoid,
    affinity=affinity,
    selection_bias=True,
  )


@pytest.mark.parametrize('ranked', [None, routers.affinities.sigmoid])
def test_selection_bias_changes_the_choice_and_never_the_weights(small, ranked):
  router = biased(ranked)
  batch, x, variables = routed(router, small, padding=(0,))
  bias = jnp.zeros(8).at[5].set(100.0)
  variables['balance']['bias'] = bias
  out = router.apply(variables, x, small.context(batch))
  assert (np.asarray(out.ids_NK)[:, 0] == 5).all()
  want = np.take_along_axis(np.asarray(out.logits_NE), out.ids_NK, -1)
  want = sigmoid(want)
  want /= want.sum(-1, keepdims=True)
  np.testing.assert_allclose(out.weights_NK, want, rtol=1e-5)


def test_selection_bias_has_no_gradient(small):
  router = biased(routers.affinities.sigmoid)
  batch, x, variables = routed(router, small)

  def total(balance):
    out = router.apply(
      {'params': variables['params'], 'balance': balance},
      x,
      small.context(batch),
    )
    return (out.weights_NK**2).sum() + (out.logits_NE**2).sum()

  gradient = jax.grad(total)(variables['balance'])
  np.testing.assert_array_equal(gradient['bias'], np.zeros(8))


def test_counts_add_up_over_calls_and_leave_padding_out(small):
  router = biased()
  batch, x, variables = routed(router, small)
  counts = np.zeros(8)
  for _ in range(2):
    out, written = router.apply(
      variables, x, small.context(batch), mutable=['balance']
    )
    variables = variables | written
    counts += np.bincount(np.asarray(out.ids_NK).ravel(), minlength=9)[:8]
  np.testing.assert_array_equal(variables['balance']['counts'], counts)
  assert counts.sum() == 2 * 13 * 2
