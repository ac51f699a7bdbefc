"""Eight devices equal one, and mistakes are told in one line."""

import jax
import numpy as np
import pytest

from moejax import sharding, validate
from moejax.parts import Parts
from pallas_kernels import chips
from tests import steps

pytestmark = pytest.mark.usefixtures('quick_compilation')
MESHES = {'8x1': (8, 1), '4x2': (4, 2), '2x4': (2, 4)}


def config(small, data, expert):
  blocks = {
    'sparse': small.sparse(router=steps.router()),
    'dense': small.dense(),
  }
  c = small.config(model=small.model(blocks, pattern=('dense', 'sparse')))
  c.mesh = dict(data=data, expert=expert)
  return c


def train(small, data, expert, count=3):
  """(initial state, state, metrics of each step), on the host."""
  return steps.take(small, config(small, data, expert), count)


@pytest.fixture(scope='module')
def alone(small):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_count', lambda: 1)
    return train(small, 1, 1)


@pytest.fixture(
  scope='module',
  params=[
    pytest.param(mesh, id=name, marks=[pytest.mark.slow] * (name != '2x4'))
    for name, mesh in MESHES.items()
  ],
)
def spread(request, small):
  return request.param, train(small, *request.param)


def test_initial_values_do_not_depend_on_the_mesh(alone, spread):
  for a, b in zip(*map(jax.tree.leaves, (alone[0], spread[1][0])), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_losses_and_router_statistics_equal_those_of_one_device(alone, spread):
  for one, many in zip(alone[2], spread[1][2], strict=True):
    assert one.keys() == many.keys()
    for name in one:
      np.testing.assert_allclose(
        one[name], many[name], rtol=1e-5, atol=1e-6, err_msg=name
      )


def test_parameters_and_biases_equal_those_of_one_device(alone, spread):
  for name in ('params', 'balance'):
    trees = (getattr(run[1], name) for run in (alone, spread[1]))
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
      scale = np.abs(a).max()
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale + 1e-9)


def test_copies_of_a_value_are_bit_equal_on_all_devices(spread):
  copies = 0
  for leaf in jax.tree.leaves((spread[1][1], spread[1][2])):
    seen = {}
    for shard in leaf.addressable_shards:
      data = np.asarray(shard.data).tobytes()
      assert seen.setdefault(str(shard.index), data) == data
      copies += 1
  assert copies > 100


def test_experts_live_on_the_expert_axis(spread):
  (_, expert), (_, state, _) = spread
  stack = state.params['layers']['blocks_1']['ffn']['experts']['gate']
  assert stack.sharding.shard_shape(stack.shape)[1] == 4 // expert
  for moment in jax.tree.leaves(state.opt_state):
    if moment.shape == stack.shape:
      assert moment.sharding.is_equivalent_to(stack.sharding, stack.ndim)


@pytest.mark.parametrize(
  'axes,message',
  [
    (dict(data=4, expert=2), 'mesh data=4 x expert=2 needs 8 devices, found 4'),
    (dict(data=-1, expert=-1), 'at most one may be -1'),
    (dict(data=0, expert=8), 'sizes are positive'),
    (dict(data=-1, expert=3), 'needs a multiple of 3 devices, found 4'),
    (dict(data=1, expert=3), 'mesh expert=3 needs 3 devices, found 4'),
  ],
)
def test_a_mesh_that_is_not_of_all_devices_is_refused(axes, message):
  with pytest.raises(ValueError, match=message) as error:
    sharding.make_mesh(axes, jax.devices()[:4])
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'change,message',
  [
    (dict(expert=8), 'num_experts=4 is not divisible by config.mesh.expert=8'),
    (dict(batch_size=12), 'batch_size=12 is not divisible by 8 '),
    (dict(accumulate=2), r'batch_size=8 is not divisible by 16 \(8 shards'),
  ],
)
def test_sizes_that_do_not_divide_are_refused(small, change, message):
  c = config(small, -1, change.pop('expert', 1))
  c.train.update(change)
  with pytest.raises(ValueError, match=message) as error:
    validate.check_batch(c, Parts(c))
  assert '\n' not in str(error.value)


def test_kernels_take_their_tiles_for_the_chip_of_the_mesh(monkeypatch):
  monkeypatch.setitem(chips._KINDS, jax.devices()[0].device_kind, 'v5p')
  mesh = sharding.make_mesh({'data': 8, 'expert': 1})
  with sharding.use(mesh, sharding.RULES):
    assert chips.current('tpu').name == 'v5p'
  assert chips.current('tpu') == chips.SMALLEST['tpu']
