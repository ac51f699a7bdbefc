"""Dispatch: every one equals the mask, and the mask equals a float64 loop."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import dispatch, experts
from moejax.dispatch.einsum import capacity_slots
from moejax.types import Chosen, Padded

E, D, F = 8, 6, 4
CASES = ('usual', 'one_token', 'one_expert', 'empty', 'odd', 'padding', 'all')


def case(name):
  """(assignment, x_ND) of a case by name."""
  rng = np.random.default_rng(CASES.index(name))
  n = {'one_token': 1, 'odd': 13}.get(name, 12)
  k = {'all': E, 'one_expert': 1}.get(name, 3)
  among = {'empty': 4}.get(name, E)
  ids = np.stack([rng.permutation(among)[:k] for _ in range(n)])
  if name == 'one_expert':
    ids[:] = 5
  weights = rng.normal(size=(n, k)).astype(np.float32)
  x = rng.normal(size=(n, D)).astype(np.float32)
  if name == 'padding':
    ids[[0, 4, 11]], weights[[0, 4, 11]] = E, 0
    ids[5, 1], weights[5, 1] = E, 0  # a row with fewer experts
    x[[0, 4, 11]] = np.nan
  logits = np.zeros((n, E), np.float32)
  return Chosen(jnp.asarray(ids, jnp.int32), jnp.asarray(weights), logits), x


@functools.cache
def params():
  module = experts.Glu(hidden=F, num_experts=E)
  rows = Padded(jnp.zeros((E, 1, D)))
  return nn.unbox(jax.jit(module.init)(jax.random.key(0), rows))['params']


@functools.partial(jax.jit, static_argnums=0)
def run(dispatcher, assignment, x, matrices):
  """y_ND and what was sown."""
  module = experts.Glu(hidden=F, num_experts=E)
  return dispatcher.apply(
    {},
    assignment,
    x,
    lambda rows: module.apply({'params': matrices}, rows),
    mutable=['stats'],
  )


@functools.partial(jax.jit, static_argnums=0)
def everything(dispatcher, assignment, x, upstream):
  """Output, gradients of x, the router's weights and the matrices, sown."""

  def forward(x, weights, matrices):
    chosen = assignment.replace(weights_NK=weights)
    return run(dispatcher, chosen, x, matrices)

  y, pull, sown = jax.vjp(
    forward, x, assignment.weights_NK, params(), has_aux=True
  )
  return y, pull(upstream), sown


@functools.cache
def oracle(name):
  """The same in float64, expert by expert, with its own formula."""
  assignment, x = case(name)
  chosen = np.asarray(assignment.ids_NK) < E
  x = np.where(chosen.any(-1)[:, None], x, 0)
  upstream = np.random.default_rng(9).normal(size=x.shape)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params())

    def forward(x, weights, p):
      y = 0
      for e in range(E):
        gate = x @ p['gate'][e]
        hidden = gate / (1 + jnp.exp(-gate)) * (x @ p['up'][e])
        weight = jnp.where(np.asarray(assignment.ids_NK) == e, weights, 0)
        y += weight.sum(-1)[:, None] * (hidden @ p['down'][e])
      return y

    weights = jnp.asarray(np.asarray(assignment.weights_NK), jnp.float64)
    y, pull = jax.vjp(forward, jnp.asarray(x, jnp.float64), weights, wide)
    return jax.tree.map(np.asarray, (y, pull(upstream))), upstream


@pytest.mark.parametrize('name', CASES)
def test_dispatch_equals_a_loop_in_float64_with_all_gradients(
  chosen_dispatch, name
):
  assignment, x = case(name)
  (y, gradients), upstream = oracle(name)
  upstream = upstream.astype(np.float32)
  got = everything(chosen_dispatch, assignment, x, upstream)
  mask = everything(dispatch.Mask(), assignment, x, upstream)
  used = (np.asarray(assignment.ids_NK) < E).any(-1)
  np.testing.assert_allclose(got[0][used], y[used], rtol=1e-5, atol=3e-6)
  np.testing.assert_allclose(got[0], mask[0], rtol=1e-5, atol=1e-6)
  names = ('x', 'weights', 'matrices')
  for i, label in enumerate(names):
    trees = (got[1][i], gradients[i], mask[1][i])
    for leaf, want, same in zip(*map(jax.tree.leaves, trees), strict=True):
      np.testing.assert_allclose(
        leaf, want, rtol=1e-5, atol=3e-6, err_msg=label
      )
      np.testing.assert_allclose(
        leaf, same, rtol=1e-5, atol=3e-6, err_msg=label
      )
  assert got[2]['stats']['dropped_frac'] == (0.0,)


def test_a_token_without_expert_gets_exactly_zero(chosen_dispatch):
  assignment, x = case('padding')
  y, _ = run(chosen_dispatch, assignment, x, params())
  np.testing.assert_array_equal(np.asarray(y)[[0, 4, 11]], np.zeros((3, D)))


def test_outputs_keep_the_dtype_of_the_tokens(chosen_dispatch):
  assignment, x = case('usual')
  y, _ = run(chosen_dispatch, assignment, x.astype(jnp.bfloat16), params())
  assert y.dtype == jnp.bfloat16
  exact, _ = run(dispatch.Mask(), assignment, x, params())
  assert jnp.abs(y - exact).max() < 0.03 * jnp.abs(exact).max()


# Capacity.


def slow_capacity(ids, weights, x, capacity, group):
  """Loops over choices: first choices first, tokens in order."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params())
  y = np.zeros(x.shape)
  dropped = wanted = 0
  for start in range(0, len(ids), group):
    full = [0] * E
    for j in range(ids.shape[1]):
      for n in range(start, start + group):
        e = ids[n, j]
        if e == E:
          continue
        wanted += 1
        if full[e] == capacity:
          dropped += 1
          continue
        full[e] += 1
        gate = x[n] @ p['gate'][e]
        hidden = gate / (1 + np.exp(-gate)) * (x[n] @ p['up'][e])
        y[n] += weights[n, j] * (hidden @ p['down'][e])
  return y, dropped / max(wanted, 1)


@pytest.mark.parametrize('group', [None, 4])
@pytest.mark.parametrize('factor', [0.25, 1.25])
def test_capacity_drops_what_a_loop_drops(factor, group):
  rng = np.random.default_rng(3)
  ids = np.stack([rng.permutation(E)[:3] for _ in range(12)])
  ids[:, 0] = np.where(ids[:, 1:] == 2, ids[:, :1], 2)[:, 0]  # crowds one
  ids[7] = E
  weights = np.where(ids < E, rng.normal(size=ids.shape), 0)
  x = rng.normal(size=(12, D)).astype(np.float32)
  assignment = Chosen(
    jnp.asarray(ids, jnp.int32),
    jnp.asarray(weights, jnp.float32),
    np.zeros((12, E), np.float32),
  )
  einsum = dispatch.Einsum(capacity_factor=factor, group_tokens=group)
  y, sown = run(einsum, assignment, x, params())
  capacity = capacity_slots(group or 12, 3, E, factor)
  want, dropped = slow_capacity(ids, weights, x, capacity, group or 12)
  assert dropped > 0
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(sown['stats']['dropped_frac'], dropped, rtol=1e-5)


@pytest.mark.parametrize(
  'tokens,k,experts_,factor,slots',
  [
    (64, 2, 8, 1.0, 16),
    (64, 2, 8, 1.25, 20),
    (7, 1, 8, 1.0, 1),
    (4, 2, 2, 9, 4),
  ],
)
def test_capacity_is_the_ceiling_of_a_fair_share(
  tokens, k, experts_, factor, slots
):
  assert capacity_slots(tokens, k, experts_, factor) == slots


def test_capacity_settings_that_cannot_work_are_refused():
  assignment, x = case('usual')
  with pytest.raises(ValueError, match='capacity_factor=0 leaves no slot'):
    run(dispatch.Einsum(capacity_factor=0), assignment, x, params())
  with pytest.raises(ValueError, match='group_tokens=5 does not divide the 12'):
    run(
      dispatch.Einsum(capacity_factor=1.0, group_tokens=5),
      assignment,
      x,
      params(),
    )
