"""Placement: balanced by load, near by routing, exact up to a permutation."""

import itertools

import jax
import numpy as np
import pytest

from configs import common
from moejax import balance, placement, sharding, step
from moejax.dispatch import traffic
from moejax.parts import Parts
from moejax.routers import select
from tests import steps

RANKS = 2


def every_order(experts):
  """All ways to put half of the experts on the first of two ranks."""
  for first in itertools.combinations(range(experts), experts // 2):
    yield [*first, *(e for e in range(experts) if e not in first)]


def busiest(load, order, ranks=RANKS):
  return placement.loads(load, order, ranks).max()


def test_packing_gives_each_rank_as_many_experts_and_nearly_the_same_load():
  rng = np.random.default_rng(0)
  for _ in range(20):
    load = rng.gamma(0.5, size=64)
    order = placement.pack(load, 8)
    assert sorted(order) == list(range(64))
    plain = busiest(load, np.arange(64), 8)
    fair = max(load.sum() / 8, load.max())
    assert busiest(load, order, 8) <= min(plain, 1.4 * fair)


def test_the_programme_over_load_finds_what_all_orders_give_at_best():
  rng = np.random.default_rng(1)
  load = rng.integers(1, 50, (3, 8))
  found = placement.programme(load, RANKS)
  for own, order in zip(load, found, strict=True):
    best = min(busiest(own, o) for o in every_order(8))
    assert busiest(own, order) == best


def test_the_programme_weighs_load_against_tokens_that_change_rank():
  rng = np.random.default_rng(2)
  load = rng.integers(1, 50, (2, 6))
  follow = rng.integers(0, 20, (1, 6, 6))

  def cost(orders, weight):
    first, second = (np.argsort(order) // 3 for order in orders)
    cut = follow[0][first[:, None] != second].sum()
    return weight * busiest(load[1], orders[1]) + cut

  for weight in (0.01, 3.0, 100.0):
    found = placement.programme(load, RANKS, next_LEE=follow, balance=weight)
    best = min(cost((found[0], order), weight) for order in every_order(6))
    assert cost(found, weight) == pytest.approx(best)


def test_copies_go_where_the_load_of_one_is_highest():
  np.testing.assert_array_equal(
    placement.replicas([90, 132, 40, 61], 6), [0, 0, 1, 1, 2, 3]
  )
  load = np.array([100.0, 1, 1, 1])
  slots = placement.replicas(load, 8)
  each = load[slots] / np.bincount(slots)[slots]
  assert busiest(each, placement.pack(each, 4), 4) < 0.5 * load.max()


@pytest.mark.parametrize('seed', range(8))
def test_nodes_keep_groups_whole_and_are_packed_as_one_node_would_be(seed):
  rng = np.random.default_rng(seed)
  nodes, each = rng.integers(1, 5, 2)
  groups = nodes * rng.integers(1, 4)
  held = rng.integers(1, 4)  # slots of a rank
  # A group has no more experts than its share of its node's slots.
  most = nodes * each * held // groups
  if most == 0:
    groups, most = nodes, each * held
  experts = groups * rng.integers(1, most + 1)
  slots, ranks = nodes * each * held, nodes * each
  load = rng.gamma(0.5, size=experts)
  order = placement.pack_nodes(load, ranks, nodes, groups=groups, slots=slots)
  assert order.shape == (slots,) and set(order) == set(range(experts))
  by_node = order.reshape(nodes, -1)
  group = by_node // (experts // groups)
  found = [set(own) for own in group]
  assert [len(own) for own in found] == [groups // nodes] * nodes
  assert len(set.union(*found)) == groups
  # Within a node, what packing without nodes makes of the same experts.
  share = load / np.bincount(order)
  for own in by_node:
    here = np.unique(own)
    flat = here[placement.replicas(load[here], each * held)]
    np.testing.assert_array_equal(np.sort(own), flat)
    want = placement.loads(share[flat], placement.pack(share[flat], each), each)
    got = placement.loads(share, own, each)
    np.testing.assert_allclose(got, want)
  # No node has less than its least busy groups, nor more than its fair share
  # and the busiest group beside it.
  heavy = load.reshape(groups, -1).sum(1)
  busy = share[by_node].sum(1).max()
  assert heavy.sum() / nodes - 1e-9 <= busy
  assert busy <= heavy.sum() / nodes + heavy.max() + 1e-9


def test_one_node_is_packing_without_nodes():
  load = np.random.default_rng(0).gamma(0.5, size=24)
  slots = placement.replicas(load, 32)
  each = load[slots] / np.bincount(slots)[slots]
  np.testing.assert_array_equal(
    placement.pack_nodes(load, 8, 1, groups=6, slots=32),
    slots[placement.pack(each, 8)],
  )


def test_tokens_of_two_groups_go_to_two_nodes_and_by_load_alone_to_more():
  rng = np.random.default_rng(0)
  affinity = rng.normal(size=(200, 32)).astype(np.float32)
  ids = np.asarray(
    select.group_limited(affinity, 4, num_groups=8, kept_groups=2)
  )
  load = np.bincount(ids.reshape(-1), minlength=32)
  most = {}
  for name, order in (
    ('nodes', placement.pack_nodes(load, 8, 4, groups=8)),
    ('flat', placement.pack(load, 8)),
  ):
    moved = placement.inverse(order)[ids]
    nowhere = np.full(len(ids), -1)
    most[name] = traffic.crossings(moved, nowhere, 32, 4).max()
  assert most == {'nodes': 2, 'flat': 4}


@pytest.mark.parametrize(
  'call,message',
  [
    (
      lambda: placement.pack_nodes([1] * 6, 4, 2, groups=3),
      '3 groups cannot be spread evenly over 2 nodes',
    ),
    (lambda: placement.pack_nodes([1] * 6, 3, 2), '3 ranks cannot be spread'),
    (lambda: placement.pack([1, 2, 3], 2), '3 experts cannot be spread evenly'),
    (lambda: placement.replicas([1, 2, 3], 2), 'slots=2 are fewer'),
    (lambda: placement.permute({}, {}, {'a': [0, 0]}), 'is no permutation'),
    (
      lambda: placement.permute({}, {}, {'a': [1, 0]}),
      'no mixture lies at',
    ),
  ],
)
def test_what_cannot_work_is_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()


# Two layers of four experts: any order, and one for groups on two nodes.
FREE = np.array([[2, 0, 3, 1], [1, 3, 2, 0]])
NODES = [placement.pack_nodes(w, 4, 2) for w in ([1, 2, 4, 3], [1, 2, 1, 1])]


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compilation')
@pytest.mark.parametrize('order,groups', [(FREE, None), (np.array(NODES), 2)])
def test_training_goes_on_as_if_nothing_had_been_permuted(small, order, groups):
  router = steps.router()
  if groups is not None:
    router.select = common.node(
      'routers.select.group_limited', num_groups=groups, kept_groups=1
    )
    # Nodes change places in one layer, experts of a node in both.
    assert order.tolist() == [[2, 3, 1, 0], [1, 0, 2, 3]]
  config = small.config(model=small.model({'a': small.sparse(router=router)}))
  config.model.repeats = 2
  config.mesh = dict(data=8, expert=1)
  parts = Parts(config)
  take = jax.jit(
    step.train_step(
      parts.model,
      parts.tx,
      loss=parts.loss,
      weights=dict(config.losses),
      bias_update=balance.bias_update,
    )
  )
  mixture = 'layers/blocks_0/ffn'

  def move(state, order):
    return placement.permute(state, parts.state_names, {mixture: order})

  batches = [small.rows(seed, batch=8) for seed in range(4)]
  with sharding.use(parts.mesh, parts.rules):
    state = parts.new_state()
    for batch in batches[:2]:  # moments and biases differ between experts
      state, _ = take(state, batch)
    moved = move(state, order)
    same = move(moved, placement.inverse(order))
    for a, b in zip(*map(jax.tree.leaves, (state, same)), strict=True):
      np.testing.assert_array_equal(a, b)
    changed = [
      not np.array_equal(a, b)
      for a, b in zip(*map(jax.tree.leaves, (state, moved)), strict=True)
    ]
    # Matrices and router columns, twice their moments, and the bias; the
    # counts are zero after a step.
    assert sum(changed) == 3 * 4 + 1
    for batch in batches[2:]:
      (state, one), (moved, other) = take(state, batch), take(moved, batch)
      np.testing.assert_allclose(one['loss'], other['loss'], rtol=1e-6)
    back = move(moved, placement.inverse(order))
  for a, b in zip(*map(jax.tree.leaves, (state, back)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
