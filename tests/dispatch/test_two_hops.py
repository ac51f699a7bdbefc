"""Two hops: as one device, and no row to a node twice."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from moejax import dispatch, sharding
from moejax.aot.collectives import bytes_by_kind
from moejax.dispatch import traffic
from moejax.routers import select
from tests.dispatch import test_exchange as shared
from tests.dispatch.test_exchange import D, K, N

pytestmark = pytest.mark.usefixtures('quick_compilation')
RULES = (
  ('batch', ('data', 'node', 'expert')),
  ('expert', ('node', 'expert')),
  *sharding.RULES[2:],
)


def compiled(dispatcher, monkeypatch, sizes, num_experts=8, tokens=N):
  """`test_exchange.compiled` on a mesh of data, nodes and their ranks."""
  names = ('data', 'node', 'expert')
  mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * 3)
  monkeypatch.setattr(sharding, 'RULES', RULES)
  monkeypatch.setattr(shared, 'CUT', names)
  return shared.compiled(dispatcher, mesh, num_experts, tokens)


@pytest.mark.parametrize('nodes', [2, 4])
def test_crossings_are_what_a_loop_counts_and_routing_bounds_them(nodes):
  rng = np.random.default_rng(0)
  affinity = rng.normal(size=(40, 16)).astype(np.float32)
  node = rng.integers(0, nodes, 40)
  ids = np.array(
    select.group_limited(affinity, 6, num_groups=nodes, kept_groups=2)
  )
  free = np.array(select.top_k(affinity, 6))
  ids[3], ids[4, 2:] = 16, 16
  for chosen in (ids, free):
    want = []
    for n in range(40):
      there = set()
      for e in chosen[n]:
        if e < 16 and e // (16 // nodes) != node[n]:
          there.add(e // (16 // nodes))
      want.append(len(there))
    got = traffic.crossings(chosen, node, 16, nodes)
    np.testing.assert_array_equal(got, want)
  assert traffic.crossings(ids, node, 16, nodes).max() <= 2
  if nodes == 4:
    assert traffic.crossings(free, node, 16, nodes).max() == 3


def test_nodes_that_do_not_divide_the_experts_are_refused():
  with pytest.raises(ValueError, match='8 experts cannot be spread evenly'):
    traffic.crossings(np.zeros((2, 1), int), np.zeros(2, int), 8, 3)


SIZES = [(1, 2, 4), (1, 4, 2), (2, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize('sizes', SIZES, ids=str)
@pytest.mark.parametrize(
  'dispatcher',
  [
    dispatch.TwoHops(),
    dispatch.TwoHops(room=0.4, stages=2),
    dispatch.TwoHops(nodes_per_token=1),
  ],
  ids=['usual', 'staged', 'one_node'],
)
def test_two_hops_equal_a_loop_in_float64(dispatcher, sizes, monkeypatch):
  _, call = compiled(dispatcher, monkeypatch, sizes)
  for name, stats in shared.assert_equals_one_device(call, 8):
    ids = np.asarray(shared.load(name, 8)[0].ids_NK)
    nodes = sizes[1]
    device = np.repeat(np.arange(8), N // 8)
    node = device // sizes[2] % nodes
    used = (ids < 8).any(-1).sum()
    if dispatcher.stages == 1:
      want = traffic.crossings(ids, node, 8, nodes).sum() / used
      assert stats['exchange_crossings'] == pytest.approx(want, rel=1e-6)


@pytest.mark.slow
def test_bytes_of_the_compiled_program_are_those_of_the_formula(monkeypatch):
  dispatcher = dispatch.TwoHops(room=8.0, nodes_per_token=1)
  built, _ = compiled(dispatcher, monkeypatch, (1, 2, 4), tokens=8 * 64)
  layer = traffic.Layer(
    tokens=64, k=K, width=D, num_experts=8, ranks=8, itemsize=4
  )
  want = dispatcher.collective_bytes(layer, nodes=2)
  got = bytes_by_kind(built.as_text())['all-to-all']
  assert got == pytest.approx(want['all-to-all'], rel=0.1)
  # One hop sends a row for each choice that is on another node.
  one = dispatch.AllToAll(room=1.0).collective_bytes(layer)
  two = dispatch.TwoHops(room=1.0, nodes_per_token=1)
  between = two.collective_bytes(layer, nodes=2)['between']
  assert between < one['all-to-all'] * 4 / 7 / 2


@pytest.mark.parametrize('experts,sizes', [(8, (1, 1, 8)), (4, (1, 2, 4))])
def test_what_two_hops_cannot_do_is_refused(experts, sizes, monkeypatch):
  with pytest.raises(ValueError, match='two hops need experts over two') as e:
    compiled(dispatch.TwoHops(), monkeypatch, sizes, experts)
  assert '\n' not in str(e.value)
