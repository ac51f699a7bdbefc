"""More and fewer devices: not a bit changes, and no byte moves in vain."""

import itertools

import jax
import numpy as np
import pytest

from configs import common
from moejax import balance, placement, sharding, step
from moejax.checkpoint import Checkpoints
from moejax.parts import Parts
from tests import steps

E, LAYERS, MIXTURE = 8, 2, 'layers/blocks_0/ffn'


def meshes(data, expert):
  devices = jax.devices()[: data * expert]
  return sharding.make_mesh(dict(data=data, expert=expert), devices)


NAMES = {
  'params': {
    'embedding': ('vocab', 'embed'),
    'layers': {
      'blocks_0': {
        'ffn': {
          'experts': {'up': ('layers', 'expert', 'embed', 'mlp')},
          'router': {'kernel': ('layers', 'embed', 'router')},
        }
      }
    },
  },
  'balance': {
    'layers': {'blocks_0': {'ffn': {'router': {'bias': (None, None)}}}}
  },
}
SHAPES = dict(
  embedding=(4, 3), up=(LAYERS, E, 3, 5), kernel=(LAYERS, 3, E), bias=(2, E)
)


def target(mesh):
  """A small state, as shapes on a mesh."""

  def one(path, where):
    shape = SHAPES[path[-1].key]
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=where)

  where = sharding.shardings(NAMES, mesh, sharding.RULES)
  return jax.tree_util.tree_map_with_path(one, where)


def made(mesh):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda a: jax.device_put(
      rng.normal(size=a.shape).astype(a.dtype), a.sharding
    ),
    target(mesh),
  )


def equal(a, b):
  for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def held(state):
  """{device: experts}, read off what the devices have."""
  up = state['params']['layers']['blocks_0']['ffn']['experts']['up']
  experts = np.arange(E)
  return {s.device: set(experts[s.index[1]]) for s in up.addressable_shards}


def every_split(experts, ranks):
  if ranks == 1:
    yield (tuple(experts),)
    return
  for first in itertools.combinations(sorted(experts), len(experts) // ranks):
    for rest in every_split(set(experts) - set(first), ranks - 1):
      yield (first, *rest)


@pytest.mark.parametrize('seed', range(6))
def test_no_order_leaves_more_experts_in_place(seed):
  rng = np.random.default_rng(seed)
  ranks, devices = 3, 6
  has = rng.random((devices, 6)) < rng.choice([0.2, 0.5])
  rank = np.arange(devices) // 2 if seed % 2 else np.arange(devices) % 3

  def kept(split):
    return sum(has[d, list(split[rank[d]])].sum() for d in range(devices))

  order = placement.stay(has, rank)
  best = max(map(kept, every_split(range(6), ranks)))
  assert kept(order.reshape(ranks, -1)) == best
  if kept(np.arange(6).reshape(ranks, -1)) == best:
    np.testing.assert_array_equal(order, np.arange(6))


@pytest.mark.parametrize(
  'sizes',
  [
    [(1, 4), (1, 2), (1, 8)],
    pytest.param([(2, 4), (1, 2), (4, 2)], marks=pytest.mark.slow),
    pytest.param([(8, 1), (2, 2), (1, 8), (2, 4)], marks=pytest.mark.slow),
  ],
)
def test_each_device_is_sent_what_it_lacks_and_nothing_else(sizes):
  state = first = made(meshes(*sizes[0]))
  orders = []
  for size in sizes[1:]:
    had = held(state)
    before = state
    done = placement.resize(state, target(meshes(*size)), NAMES)
    order = done.orders.get(MIXTURE, np.arange(E))
    state = done.state
    equal(state, placement.permute(before, NAMES, {MIXTURE: order}))
    orders.append(order)
    one = LAYERS * 3 * 5 * 4
    whole = 4 * (4 * 3 + LAYERS * 3 * E + 2 * E)
    for device, places in held(state).items():
      lacks = {int(order[e]) for e in places} - had.get(device, set())
      want = len(lacks) * one + (0 if device in had else whole)
      assert done.sent_bytes.get(device.id, 0) == want
      needs = len(places) * one + whole
      assert done.kept_bytes.get(device.id, 0) == needs - want
    plain = placement.resize(before, target(meshes(*size)), NAMES, keep=False)
    equal(plain.state, before)
    sent = sum(done.sent_bytes.values())
    assert not plain.orders and sent <= sum(plain.sent_bytes.values())
  for order in reversed(orders):
    state = placement.permute(state, NAMES, {MIXTURE: placement.inverse(order)})
  equal(state, first)


def test_four_devices_to_two_send_four_experts_where_runs_would_send_six():
  # Two of each device's four are there; runs 0-3 and 4-7 leave two in place.
  state, one = made(meshes(1, 4)), LAYERS * 3 * 5 * 4
  sent = [
    sum(
      placement.resize(
        state, target(meshes(1, 2)), NAMES, keep=keep
      ).sent_bytes.values()
    )
    for keep in (True, False)
  ]
  assert sent == [4 * one, 6 * one]


def test_what_did_not_move_is_the_same_memory():
  state = made(meshes(1, 4))
  done = placement.resize(state, target(meshes(1, 8)), NAMES)
  first, second = (
    s['params']['embedding'].addressable_shards[0].data
    for s in (state, done.state)
  )
  assert first.unsafe_buffer_pointer() == second.unsafe_buffer_pointer()


def test_lost_devices_are_done_without_if_others_hold_the_same():
  state, devices = made(meshes(2, 4)), jax.devices()
  done = placement.resize(state, target(meshes(1, 4)), NAMES, lost=devices[4:])
  equal(done.state, state)
  assert not any(done.sent_bytes.values())
  with pytest.raises(ValueError, match='on lost devices alone') as error:
    placement.resize(
      made(meshes(1, 8)), target(meshes(1, 4)), NAMES, lost=devices[4:]
    )
  assert '\n' not in str(error.value)


def test_another_shape_is_refused():
  state = made(meshes(1, 4))
  state['params']['embedding'] = jax.numpy.zeros((4, 2))
  with pytest.raises(ValueError, match='params/embedding is float32'):
    placement.resize(state, target(meshes(1, 2)), NAMES)


# Training.


def config(small):
  layer = small.sparse(
    router=steps.router(8), num_experts=8, dispatch=common.node('dispatch.Ring')
  )
  c = small.config(model=small.model({'sparse': layer}))
  c.model.repeats = 2
  return c


class Trainer:
  """Steps of a small model on some of the devices."""

  def __init__(self, small, expert):
    self.small = small
    c = config(small)
    c.mesh = dict(data=1, expert=expert)
    self.parts = parts = Parts(c, jax.devices()[:expert])
    self.step = jax.jit(
      step.train_step(
        parts.model,
        parts.tx,
        loss=parts.loss,
        weights=dict(c.losses),
        bias_update=balance.bias_update,
      ),
      out_shardings=(parts.state_shardings, sharding.replicated(parts.mesh)),
    )

  def go(self, state, seeds):
    """(state, losses)."""
    losses = []
    with sharding.use(self.parts.mesh, self.parts.rules):
      for seed in seeds:
        rows = self.small.rows(seed, batch=8, padding=(2, 0, 8, 1))
        batch = sharding.put_batch(rows, self.parts.batch_sharding)
        state, metrics = self.step(state, batch)
        losses.append(float(metrics['loss']))
    return state, losses


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compilation')
def test_training_goes_on_from_four_devices_to_two_to_eight(small, tmp_path):
  four, two, eight = (Trainer(small, n) for n in (4, 2, 8))
  state, losses = four.go(four.parts.new_state(), range(2))
  unchanged, want = four.go(state, range(2, 8))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, state, force=True)
    checkpoints.wait()
    restored, at = checkpoints.restore(eight.parts.abstract_state)
  assert at == 2
  equal(restored, state)

  orders = []
  for trainer, seeds in ((two, range(2, 5)), (eight, range(5, 8))):
    parts = trainer.parts
    done = placement.resize(state, parts.abstract_state, parts.state_names)
    assert set(done.orders) == {MIXTURE}
    equal(done.state, placement.permute(state, parts.state_names, done.orders))
    orders.append(done.orders)
    state, more = trainer.go(done.state, seeds)
    losses += more
  np.testing.assert_allclose(losses[2:], want, rtol=1e-6)
  for order in reversed(orders):
    back = {path: placement.inverse(o) for path, o in order.items()}
    state = placement.permute(state, eight.parts.state_names, back)
  for a, b in zip(*map(jax.tree.leaves, (state, unchanged)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  _, restored_losses = eight.go(restored, range(2, 8))
  np.testing.assert_allclose(restored_losses, want, rtol=1e-6)
