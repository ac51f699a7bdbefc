"""Forced routes: loads as promised, weights and gradients of the router."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import routers

E, K, D = 8, 3, 16


def inner(weigh=routers.weigh.softmax, affinity=None, bias=False):
  return routers.Router(
    score=routers.scores.Linear(num_experts=E),
    k=K,
    select=routers.select.top_k,
    weigh=weigh,
    affinity=affinity,
    selection_bias=bias,
  )


def forced(router, small, length=64, padding=(0,)):
  """(assignment, valid_N, variables, variables -> assignment) of 2 rows."""
  batch = small.rows(0, length=length, padding=padding)
  x = jax.random.normal(jax.random.key(0), (2 * length, D))
  ctx = small.context(batch, train=True)
  variables = jax.jit(router.init)(jax.random.key(1), x, ctx)
  apply = functools.partial(router.apply, x_ND=x, ctx=ctx)
  return jax.jit(apply)(variables), np.asarray(ctx.valid_N), variables, apply


ROUTERS = [
  routers.RoundRobin(inner()),
  routers.Sampled(inner()),
  routers.Sampled(inner(), exponent=1.0),
  routers.Biased(inner(), std=2.0),
]


@pytest.mark.parametrize('router', ROUTERS, ids=lambda r: type(r).__name__)
def test_experts_of_a_token_differ_and_weights_are_those_of_the_logits(
  router, small
):
  out, valid, variables, apply = forced(router, small, padding=(7, 0))
  ids = np.asarray(out.ids_NK)
  assert ids.dtype == np.int32 and (ids[~valid] == E).all()
  assert all(len(set(row)) == K and max(row) < E for row in ids[valid])
  logits = np.asarray(out.logits_NE, np.float64)[valid]
  chosen = np.exp(np.take_along_axis(logits, ids[valid], -1))
  np.testing.assert_allclose(
    np.asarray(out.weights_NK)[valid],
    chosen / chosen.sum(-1, keepdims=True),
    rtol=1e-5,
  )
  assert (np.asarray(out.weights_NK)[~valid] == 0).all()

  def squares(variables):
    return jnp.square(apply(variables).weights_NK).sum()

  (gradient,) = jax.tree.leaves(jax.jit(jax.grad(squares))(variables))
  used = out.counts_E() > 0
  assert (np.abs(gradient).max(0) > 0).sum() == used.sum()


@pytest.mark.parametrize('padding', [(0,), (7, 0)])
def test_round_robin_balances_the_load_of_real_tokens(padding, small):
  out, valid, *_ = forced(routers.RoundRobin(inner()), small, padding=padding)
  counts = np.asarray(out.counts_E())
  share = valid.sum() * K / E
  assert counts.sum() == valid.sum() * K
  assert counts.min() == np.floor(share) and counts.max() == np.ceil(share)


def test_even_draws_use_all_experts_alike_and_depend_on_the_seed(small):
  loads = []
  for seed in (0, 0, 1):
    router = routers.Sampled(inner(), seed=seed)
    out, *_ = forced(router, small, length=2000)
    loads.append(np.asarray(out.ids_NK))
  np.testing.assert_array_equal(loads[0], loads[1])
  assert (loads[0] != loads[2]).any()
  # A count has mean 1500 and variance 4000 (3/8)(5/8), so 31 is one sigma.
  counts = np.bincount(loads[0].ravel(), minlength=E)
  assert np.abs(counts - 1500).max() < 4 * 31
  # Each place among the K as well: no expert is favoured.
  first = np.bincount(loads[0][:, 0], minlength=E)
  assert np.abs(first - 500).max() < 4 * 21


def test_a_power_law_draws_the_first_choice_in_proportion(small):
  out, *_ = forced(routers.Sampled(inner(), exponent=1.0), small, length=2000)
  first = np.bincount(np.asarray(out.ids_NK)[:, 0], minlength=E)
  law = 1 / np.arange(1, E + 1)
  want = 4000 * law / law.sum()
  assert np.abs(np.sort(first)[::-1] - want).max() < 4 * np.sqrt(want.max())
  steep, *_ = forced(routers.Sampled(inner(), exponent=60.0), small)
  assert (np.sort(steep.counts_E()) == [0] * (E - K) + [128] * K).all()


@pytest.mark.parametrize('affinity', [None, routers.affinities.sigmoid])
def test_biased_selects_by_the_sum_and_more_bias_skews_more(affinity, small):
  peaks = []
  for std in (0.0, 1.0, 50.0):
    router = routers.Biased(inner(affinity=affinity), std=std, seed=3)
    out, *_ = forced(router, small)
    bias = std * np.asarray(jax.random.normal(jax.random.key(3), (E,)))
    ranked = np.argsort(-(np.asarray(out.logits_NE) + bias), -1)[:, :K]
    if affinity is None or std < 50:  # a sigmoid saturates: ties
      np.testing.assert_array_equal(np.sort(out.ids_NK), np.sort(ranked))
    peaks.append(out.counts_E().max())
  assert peaks[0] < peaks[1] <= peaks[2] == 128


def test_only_a_choice_by_the_token_alone_may_decode():
  assert [router.causal for router in ROUTERS] == [False, False, False, True]
  assert all(router.k == K for router in ROUTERS)
  assert all(router.flops(D) == 2 * D * E for router in ROUTERS)


@pytest.mark.parametrize(
  'router,message',
  [
    (routers.Sampled(inner(), exponent=-1.0), 'exponent=-1.0 must be at'),
    (routers.Biased(inner(), std=-2.0), 'std=-2.0 must be at least 0'),
  ],
)
def test_numbers_below_zero_are_refused(router, message, small):
  with pytest.raises(ValueError, match=message):
    forced(router, small)
