"""Dispatch of lists of pairs: equals a float64 loop over the list."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import balance, dispatch, experts, moe, routers
from moejax.types import Chosen, Padded, Pairs

N, E, D, F = 6, 5, 6, 4
# Token 0 has every expert, 1 and 5 have none, expert 3 has token 0 only; the
# last two rows belong to no expert and name a token that holds nan.
TOKENS = np.array([0, 2, 3, 0, 4, 3, 0, 2, 0, 0, 4, 2, 1, 1], np.int32)
IDS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4, E, E], np.int32)
UPSTREAM = np.random.default_rng(3).normal(size=(N, D)).astype(np.float32)


def pairs(seed=0):
  weights = np.random.default_rng(seed).normal(size=IDS.shape)
  weights = np.where(IDS < E, weights, 0).astype(np.float32)
  logits = np.random.default_rng(1).normal(size=(N, E)).astype(np.float32)
  return Pairs(*map(jnp.asarray, (TOKENS, IDS, weights, logits)))


def tokens():
  x = np.random.default_rng(2).normal(size=(N, D)).astype(np.float32)
  x[[1, 5]] = np.nan
  return x


MODULE = experts.Glu(hidden=F, num_experts=E)


@functools.cache
def matrices():
  rows = Padded(jnp.zeros((E, 1, D)))
  return nn.unbox(jax.jit(MODULE.init)(jax.random.key(0), rows))['params']


@functools.cache
def oracle():
  """Output and gradients in float64, pair by pair."""
  x, weights, p = tokens(), pairs().weights_R, matrices()
  with jax.enable_x64(True):
    wide = [jnp.asarray(np.nan_to_num(a), jnp.float64) for a in (x, weights)]
    wide.append(jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), p))

    def forward(x, weights, p):
      y = jnp.zeros_like(x)
      for r, (n, e) in enumerate(zip(TOKENS, IDS, strict=True)):
        if e < E:
          gate = x[n] @ p['gate'][e]
          hidden = gate / (1 + jnp.exp(-gate)) * (x[n] @ p['up'][e])
          y = y.at[n].add(weights[r] * (hidden @ p['down'][e]))
      return y

    y, pull = jax.vjp(jax.jit(forward), *wide)
    upstream = jnp.asarray(UPSTREAM, jnp.float64)
    return jax.tree.map(np.asarray, (y, pull(upstream)))


def test_dispatch_equals_a_loop_over_pairs_with_all_gradients(pairs_dispatch):
  p, x, assignment = matrices(), tokens(), pairs()

  @jax.jit
  def everything(x, weights, p):
    def forward(x, weights, p):
      return pairs_dispatch.apply(
        {},
        assignment.replace(weights_R=weights),
        x,
        lambda rows: MODULE.apply({'params': p}, rows),
      )

    y, pull = jax.vjp(forward, x, weights, p)
    return y, pull(UPSTREAM)

  got = everything(x, assignment.weights_R, p)
  want = oracle()
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)
  np.testing.assert_array_equal(np.asarray(got[0])[[1, 5]], np.zeros((2, D)))


def test_an_expert_of_products_alone_sees_the_same(pairs_dispatch):
  x, assignment = np.nan_to_num(tokens()), pairs()
  w = np.random.default_rng(4).normal(size=(E, D, D)).astype(np.float32)
  y = pairs_dispatch.apply(
    {}, assignment, x, lambda rows: rows.dot(w).map(jnp.tanh)
  )
  want = np.zeros((N, D))
  for n, e, weight in zip(TOKENS, IDS, assignment.weights_R, strict=True):
    if e < E:
      want[n] += float(weight) * np.tanh(x[n].astype(np.float64) @ w[e])
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=3e-6)


def test_sorting_keeps_no_row_of_width_d_for_a_pair():
  assignment = pairs()

  def forward(x, weights, p):
    return dispatch.Sort().apply(
      {},
      assignment.replace(weights_R=weights),
      x,
      lambda rows: MODULE.apply({'params': p}, rows),
    )

  p = matrices()
  _, pull = jax.vjp(forward, tokens(), assignment.weights_R, p)
  kept = sum(
    a.size
    for a in jax.tree.leaves(pull)
    if hasattr(a, 'dtype') and jnp.issubdtype(a.dtype, jnp.floating)
  )
  # Tokens, pre-activations of gate and up, weights, matrices.
  assert kept == N * D + 2 * IDS.size * F + IDS.size + 3 * E * D * F


def test_a_list_of_what_tokens_chose_counts_as_the_choice(small):
  k, e = 2, 8
  rng = np.random.default_rng(5)
  batch = small.rows(0, padding=(3, 0))
  ids = np.stack([rng.permutation(e)[:k] for _ in range(16)]).astype(np.int32)
  ids[batch['segments'].reshape(-1) == 0] = e
  weights = rng.uniform(size=ids.shape).astype(np.float32)
  logits = rng.normal(size=(16, e)).astype(np.float32)
  chosen = Chosen(*map(jnp.asarray, (ids, weights, logits)))
  order = np.argsort(ids.reshape(-1), kind='stable')
  listed = Pairs(
    *map(
      jnp.asarray,
      (
        (order // k).astype(np.int32),
        ids.reshape(-1)[order],
        weights.reshape(-1)[order],
        logits,
      ),
    )
  )
  for name in ('counts_E', 'counts_NE'):
    np.testing.assert_array_equal(
      getattr(listed, name)(), getattr(chosen, name)()
    )
  np.testing.assert_allclose(
    listed.weights_NE(), chosen.weights_NE(), rtol=1e-6
  )
  ctx = small.context(batch)
  for term in (balance.load, balance.per_sequence, balance.z):
    np.testing.assert_allclose(term(listed, ctx), term(chosen, ctx), rtol=1e-6)


def test_a_dispatch_that_takes_no_list_says_so(small):
  class Lists(nn.Module):
    inner: nn.Module

    def __call__(self, x, ctx):
      return pairs()

  layer = moe.Moe(
    router=Lists(routers.scores.Linear(num_experts=E)),
    dispatch=dispatch.Einsum(capacity_factor=1.0),
    experts=MODULE,
  )
  batch = small.rows(0, batch=1, length=N)
  with pytest.raises(ValueError, match='makes a Pairs assignment, but'):
    layer.init(jax.random.key(0), jnp.zeros((1, N, D)), small.context(batch))
