"""The best slots of a grid, against all of its slots."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.memory import initial
from moejax.memory.retrieval import (
  candidates,
  leading,
  product_top_k,
  tucker_top_k,
)

product = functools.partial(jax.jit, static_argnums=2)(product_top_k)
tucker = functools.partial(jax.jit, static_argnums=4)(tucker_top_k)
SIZES = st.sampled_from([(1, 1), (5, 3), (6, 6), (40, 32)])  # keys, k
floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(size=SIZES, seed=st.integers(0, 2**31), coarse=st.booleans())
def test_product_keys_find_the_best_of_all_slots(size, seed, coarse):
  keys, k = size
  rng = np.random.default_rng(seed)
  halves = rng.normal(size=(2, 3, 2, keys))
  halves = (halves.round() if coarse else halves).astype(np.float32)
  ids, scores = product(*halves, k)
  grid = (halves[0][..., :, None] + halves[1][..., None, :]).reshape(3, 2, -1)
  np.testing.assert_array_equal(scores, -np.sort(-grid, -1)[..., :k])
  np.testing.assert_array_equal(np.take_along_axis(grid, ids, -1), scores)
  assert (np.diff(np.sort(ids, -1), axis=-1) > 0).all()  # no slot twice


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(numbers=st.lists(floats, min_size=1, max_size=24))
def test_no_slot_is_out_of_range_whatever_the_scores(numbers):
  halves = np.resize(np.array(numbers, np.float32), (2, 2, 1, 6))
  found = [product(*halves, 4)[0]]
  cores = np.resize(halves, (2, 1, 1, 1))
  direction = (np.resize(halves, (1, 1)),) * 2
  found.append(tucker(*halves[..., None], cores, direction, 4)[0])
  for ids in found:
    assert (np.asarray(ids) >= 0).all() and (np.asarray(ids) < 36).all()


def test_few_pairs_are_candidates():
  assert [len(candidates(k)[0]) for k in (1, 32, 128)] == [1, 119, 645]


def grid_of(halves, cores):
  return np.einsum('nhar,chrq,nhbq->nhab', halves[0], cores, halves[1])


def problem(positive):
  rng = np.random.default_rng(0)
  halves = rng.normal(size=(2, 16, 1, 60, 2)).astype(np.float32)
  cores = rng.uniform(size=(2, 1, 2, 2)).astype(np.float32)
  if positive:  # a core of rank 1, halves that are not negative
    halves, cores = np.abs(halves), np.ones_like(cores)
  direction = leading(cores.sum(0), jnp.ones((1, 2)))
  return halves, cores, direction


@pytest.mark.parametrize('positive,least,most', [(1, 1, 1), (0, 0.3, 0.4)])
def test_recall_of_the_filter_among_all_slots(positive, least, most):
  """Exact for positive halves; of halves of either sign about a third.

  Products of two negative halves are good and not seen by it.
  """
  halves, cores, direction = problem(positive)
  k = 12
  ids, scores = tucker(*halves, cores, direction, k)
  grid = grid_of(halves, cores).reshape(16, 1, -1)
  np.testing.assert_allclose(
    np.asarray(scores).sum(-1), np.take_along_axis(grid, ids, -1), rtol=1e-4
  )
  best = np.argsort(-grid, -1)[..., :k]
  recall = np.mean(
    [
      len(set(a) & set(b)) / k
      for a, b in zip(np.asarray(ids)[:, 0], best[:, 0], strict=True)
    ]
  )
  assert least <= recall <= most


def test_filtered_slots_are_the_best_of_the_filtered_grid():
  halves, cores, (u, v) = problem(0)
  ids, _ = tucker(*halves, cores, (u, v), 5)
  for n in range(4):
    rows = np.argsort(-(halves[0, n, 0] @ u[0]))[:5]
    columns = np.argsort(-(halves[1, n, 0] @ v[0]))[:5]
    grid = grid_of(halves, cores)[n, 0][np.ix_(rows, columns)]
    best = np.argsort(-grid.reshape(-1))[:5]
    want = rows[best // 5] * 60 + columns[best % 5]
    np.testing.assert_array_equal(ids[n, 0], want)


@pytest.mark.parametrize('ranks', [2, 3])
def test_leading_vectors_are_those_of_the_decomposition(ranks):
  rng = np.random.default_rng(ranks)
  core = rng.normal(size=(5, ranks, ranks)).astype(np.float32)
  u, _, v = np.linalg.svd(core)
  u, v = u[:, :, 0], v[:, 0]
  before = v + 0.3 * rng.normal(size=v.shape)
  for sign in (1, -1):
    got = jax.jit(leading)(core, sign * before)
    turn = np.sign((v * before).sum(1, keepdims=True)) * sign
    np.testing.assert_allclose(got[0], turn * u, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[1], turn * v, rtol=1e-4, atol=1e-4)


def test_directions_are_unit_vectors_when_the_old_one_is_orthogonal():
  core = jnp.diag(jnp.array([3.0, 1.0]))[None]
  u, v = leading(core, jnp.array([[0.0, 1.0]]))
  np.testing.assert_allclose(np.abs(v), [[1, 0]], atol=1e-5)
  np.testing.assert_allclose(u, v, atol=1e-5)


def test_the_gain_makes_the_mean_of_the_chosen_scores_one():
  keys, dim, k = 60, 32, 8
  gain = initial.gain(keys, dim, k, 2, 2)
  rng = np.random.default_rng(7)
  means = []
  for _ in range(12):
    q, keys_ = (
      rng.normal(size=(2, 32, 1, 2, dim)),
      rng.normal(size=(2, keys, 1, 2, dim)),
    )
    q, keys_ = (
      gain * a / np.sqrt((a**2).mean(-1, keepdims=True)) for a in (q, keys_)
    )
    halves = np.einsum('anhrd,ashrd->anhsr', q, keys_).astype(np.float32)
    cores = rng.uniform(size=(2, 1, 2, 2)).astype(np.float32)
    direction = leading(cores.sum(0), jnp.ones((1, 2)))
    means.append(np.asarray(tucker(*halves, cores, direction, k)[1]).sum(-1))
  # The core is drawn twelve times here and four times there.
  assert abs(np.mean(means) - 1) < 0.25


def test_the_matched_deviation_gives_the_variance_of_a_feed_forward():
  d, hidden, layers, rows, pre, value = 96, 256, 4, 24, 12, 36
  std = initial.matched_std(d, hidden, layers, rows, pre, value, 0.2)
  rng, matrix = np.random.default_rng(0), (2 / (5 * d)) ** 0.5
  n = 4000
  x = rng.normal(size=(n, d)) @ rng.normal(0, matrix, (d, pre))
  p = rng.normal(0, std, (n, rows, pre))
  score = rng.normal(1, 0.2, (n, rows))
  weights = np.einsum('nd,nkd->nk', x, p) * score
  y = np.einsum('nk,nkd->nd', weights, rng.normal(0, std, (n, rows, value)))
  y = y @ rng.normal(0, matrix, (value, d))
  # Hidden units are products of two projections; both have variance 0.4.
  want = 0.4 * 0.4 * hidden / d * 0.4 / (2 * layers)
  np.testing.assert_allclose(y.var(), want, rtol=0.1)


def test_more_slots_than_keys_of_a_side_are_refused():
  half = jnp.zeros((1, 1, 6))
  with pytest.raises(ValueError, match='k=7 slots per head .* keys=6'):
    product_top_k(half, half, 7)
