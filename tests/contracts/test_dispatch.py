"""Dispatch: every one equals the mask, and the mask equals a float64 loop."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import dispatch, experts
from moejax.dispatch.capacity import capacity_slots, slots
from moejax.types import Chosen, Padded, Pairs

pytestmark = pytest.mark.usefixtures('quick_compilation')
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
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params())

    def forward(x, weights, p):
      y = 0
      for e in range(E):
        gate = x @ p['gate'][e]
        hidden = gate / (1 + jnp.exp(-gate)) * (x @ p['up'][e])
        weight = jnp.where(np.asarray(assignment.ids_NK) == e, weights, 0)
        y += weight.sum(-1)[:, None] * (hidden @ p['down'][e])
      return y

    @jax.jit
    def both_ways(*args):
      y, pull = jax.vjp(forward, *args)
      return y, pull(upstream)

    weights = np.asarray(assignment.weights_NK, np.float64)
    found = both_ways(x.astype(np.float64), weights, wide)
    return jax.tree.map(np.asarray, found), upstream


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


def slow_capacity(ids, weights, x, capacity, group, drop):
  """Loops over choices: first choices first, or the heaviest first."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params())
  y = np.zeros(x.shape)
  kept = np.zeros(ids.shape, bool)
  for start in range(0, len(ids), group):
    full = [0] * E
    choices = [(j, n) for j in range(ids.shape[1]) for n in range(group)]
    if drop == 'weight':
      choices.sort(key=lambda c: -weights[start + c[1], c[0]])
    for j, n in choices:
      n += start
      e = ids[n, j]
      if e == E or full[e] == capacity:
        continue
      full[e] += 1
      kept[n, j] = True
      gate = x[n] @ p['gate'][e]
      hidden = gate / (1 + np.exp(-gate)) * (x[n] @ p['up'][e])
      y[n] += weights[n, j] * (hidden @ p['down'][e])
  return y, kept


CAPACITIES = [dispatch.Einsum, dispatch.Sort]


@pytest.mark.parametrize('drop', ['position', 'weight'])
@pytest.mark.parametrize('group', [None, 4])
@pytest.mark.parametrize('factor', [0.25, 1.25])
def test_capacity_drops_what_a_loop_drops(factor, group, drop):
  rng = np.random.default_rng(3)
  ids = np.stack([rng.permutation(E)[:3] for _ in range(12)])
  ids[:, 0] = np.where(ids[:, 1:] == 2, ids[:, :1], 2)[:, 0]  # crowds one
  ids[7] = E
  weights = np.where(ids < E, rng.normal(size=ids.shape), 0)
  weights = weights.astype(np.float32)
  x = rng.normal(size=(12, D)).astype(np.float32)
  assignment = Chosen(
    jnp.asarray(ids, jnp.int32),
    jnp.asarray(weights),
    np.zeros((12, E), np.float32),
  )
  capacity = capacity_slots(group or 12, 3, E, factor)
  want, kept = slow_capacity(ids, weights, x, capacity, group or 12, drop)
  frac = 1 - kept.sum() / (ids < E).sum()
  assert frac > 0
  upstream = rng.normal(size=x.shape).astype(np.float32)
  # Once what is over the capacity has no expert, it is as if never chosen.
  left = assignment.replace(
    ids_NK=jnp.where(kept, assignment.ids_NK, E),
    weights_NK=jnp.where(kept, assignment.weights_NK, 0),
  )
  same = everything(dispatch.Mask(), left, x, upstream)
  for kind in CAPACITIES:
    dispatcher = kind(capacity_factor=factor, group_tokens=group, drop=drop)
    got = everything(dispatcher, assignment, x, upstream)
    np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-6)
    leaves = zip(*map(jax.tree.leaves, (got[1], same[1])), strict=True)
    for a, b in leaves:
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)
    np.testing.assert_allclose(got[2]['stats']['dropped_frac'], frac, rtol=1e-5)


@pytest.mark.parametrize('drop', ['position', 'weight'])
def test_slots_are_ranks_within_each_expert_and_group(drop):
  rng = np.random.default_rng(4)
  ids = rng.integers(0, E + 1, (24, 3)).astype(np.int32)
  weights = rng.integers(0, 3, ids.shape).astype(np.float32)  # with ties
  chosen = Chosen(ids, weights, np.zeros((24, E), np.float32))
  got = slots(chosen, 1.0, group_tokens=8, drop=drop)
  assert got.capacity == 3
  for g in range(3):
    own, weight = ids[8 * g : 8 * g + 8], weights[8 * g : 8 * g + 8]
    for e in range(E):
      choices = [(j, n) for j in range(3) for n in range(8) if own[n, j] == e]
      if drop == 'weight':
        choices.sort(key=lambda c: -weight[c[1], c[0]])
      ranks = [got.slot_GNK[g, n, j] for j, n in choices]
      np.testing.assert_array_equal(ranks, np.arange(len(choices)))
      kept = [got.kept_GNK[g, n, j] for j, n in choices]
      np.testing.assert_array_equal(kept, np.arange(len(choices)) < 3)
  assert not np.asarray(got.kept_GNK).reshape(24, 3)[ids == E].any()


@pytest.mark.parametrize('name', ['usual', 'odd', 'padding'])
def test_a_capacity_that_holds_all_equals_none_with_all_gradients(name):
  assignment, x = case(name)
  upstream = np.random.default_rng(9).normal(size=x.shape).astype(np.float32)
  got = [
    everything(d, assignment, x, upstream)
    for d in (
      dispatch.Sort(),
      dispatch.Sort(capacity_factor=float(E), drop='weight'),
      dispatch.Einsum(capacity_factor=float(E)),
    )
  ]
  for other in got[1:]:
    for a, b in zip(*map(jax.tree.leaves, (got[0], other)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize(
  'tokens,k,experts_,factor,want',
  [
    (64, 2, 8, 1.0, 16),
    (64, 2, 8, 1.25, 20),
    (7, 1, 8, 1.0, 1),
    (4, 2, 2, 9, 4),
  ],
)
def test_capacity_is_the_ceiling_of_a_fair_share(
  tokens, k, experts_, factor, want
):
  assert capacity_slots(tokens, k, experts_, factor) == want


@pytest.mark.parametrize('kind', CAPACITIES)
@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(capacity_factor=0), 'capacity_factor=0 leaves no slot'),
    (
      dict(capacity_factor=1.0, group_tokens=5),
      'group_tokens=5 does not divide the 12',
    ),
    (
      dict(capacity_factor=1.0, drop='chance'),
      "drop='chance' is unknown; use position or weight",
    ),
  ],
)
def test_capacity_settings_that_cannot_work_are_refused(kind, fields, message):
  assignment, x = case('usual')
  with pytest.raises(ValueError, match=message):
    run(kind(**fields), assignment, x, params())


def test_a_capacity_for_a_list_of_pairs_is_refused():
  assignment, x = case('usual')
  listed = Pairs(
    tokens_R=jnp.zeros(4, jnp.int32),
    ids_R=jnp.zeros(4, jnp.int32),
    weights_R=jnp.ones(4),
    logits_NE=assignment.logits_NE,
  )
  with pytest.raises(ValueError, match='the router makes Pairs'):
    run(dispatch.Sort(capacity_factor=1.0), listed, x, params())
