"""The permutation that sorts pairs of token and expert by expert."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.route.api import permutation

IMPLEMENTATIONS = ['count', 'sort']


@functools.partial(jax.jit, static_argnums=(1, 2))
def _plan(ids, experts, implementation=None):
  plan = permutation(ids, experts, implementation=implementation)
  return plan.pair_R, plan.token_R, plan.place_NK, plan.sizes_E


def _oracle(ids, experts):
  """A list of pairs per expert, filled token by token."""
  pairs = [[] for _ in range(experts + 1)]
  for pair, i in enumerate(np.asarray(ids).ravel().tolist()):
    pairs[i if 0 <= i < experts else experts].append(pair)
  pair = np.array(sum(pairs, []), np.int64)
  place = np.empty_like(pair)
  for row, p in enumerate(pair):
    place[p] = row
  sizes = [len(p) for p in pairs[:-1]]
  return pair, pair // ids.shape[1], place.reshape(ids.shape), sizes


def _assert_sorted(ids, experts, implementation):
  got = _plan(jnp.asarray(ids, jnp.int32), experts, implementation)
  for a, b in zip(got, _oracle(ids, experts), strict=True):
    assert a.dtype == jnp.int32
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize(
  'n,experts,k',
  [(1, 1, 1), (1, 56, 8), (130, 8, 2), (301, 100, 5), (2000, 3, 1)],
)
def test_pairs_are_sorted_stably(n, experts, k, implementation):
  rng = np.random.default_rng(0)
  # Ids repeat within a token; some are no expert's, on either side.
  ids = rng.integers(-1, experts + 2, (n, k))
  _assert_sorted(ids, experts, implementation)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('chosen', [0, 6, 7, -5])
def test_all_pairs_may_name_the_same(chosen, implementation):
  _assert_sorted(np.full((200, 3), chosen), 7, implementation)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@hypothesis.settings(deadline=None, max_examples=10, derandomize=True)
@hypothesis.given(
  seed=st.integers(0, 99), n=st.sampled_from([7, 129]), skew=st.floats(0, 4)
)
def test_skewed_ids_are_sorted_stably(implementation, seed, n, skew):
  rng = np.random.default_rng(seed)
  share = (1.0 + np.arange(6)) ** -skew
  ids = rng.choice(6, (n, 2), p=share / share.sum())
  _assert_sorted(ids, 6, implementation)


def test_no_pairs_make_an_empty_plan():
  pair, _, place, sizes = _plan(jnp.zeros((0, 4), jnp.int32), 5)
  assert pair.shape == (0,) and place.shape == (0, 4)
  assert sizes.tolist() == [0] * 5


def test_each_platform_gets_what_is_fast_there():
  ids = jax.ShapeDtypeStruct((64, 4), jnp.int32)
  traced = jax.jit(lambda ids: permutation(ids, 8)).trace(ids)
  sorts = {
    p: 'stablehlo.sort' in traced.lower(lowering_platforms=(p,)).as_text()
    for p in ('cpu', 'cuda')
  }
  assert sorts == {'cpu': False, 'cuda': True}


def test_so_many_pairs_that_counting_is_inexact_are_sorted():
  ids = jax.ShapeDtypeStruct((2**21, 8), jnp.int32)
  lowered = jax.jit(lambda ids: permutation(ids, 8)).lower(ids)
  assert 'stablehlo.sort' in lowered.as_text()
  with pytest.raises(NotImplementedError, match='at most, not 16777216'):
    jax.eval_shape(lambda i: permutation(i, 8, implementation='count'), ids)


@pytest.mark.parametrize('ids', [jnp.zeros((2, 2)), jnp.zeros(2, jnp.int32)])
def test_what_is_no_table_of_ids_is_refused(ids):
  with pytest.raises(ValueError, match=r'integer ids \[N, K\], not '):
    permutation(ids, 4)
