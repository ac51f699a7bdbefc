"""Training steps with an exchange: eight devices equal one without."""

import jax
import numpy as np
import pytest

from configs import common
from tests import steps

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('quick_compilation'),
]


def train(small, dispatch, data, expert):
  """Two steps of scanned layers with shared experts: (state, metrics)."""
  layer = small.sparse(router=steps.router(), shared=8, dispatch=dispatch)
  config = small.config(model=small.model({'sparse': layer}))
  config.model.repeats = 2
  config.mesh = dict(data=data, expert=expert)
  return steps.take(small, config, 2)[1:]


@pytest.fixture(scope='module')
def alone(small):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_count', lambda: 1)
    return train(small, common.node('dispatch.Sort'), 1, 1)


@pytest.mark.parametrize('kind', ['Ring', 'AllToAll', 'RaggedAllToAll'])
def test_steps_equal_those_of_one_device(small, alone, kind):
  node = common.node(f'dispatch.{kind}', stages=2)
  state, metrics = train(small, node, 2, 4)
  for one, many in zip(alone[1], metrics, strict=True):
    for name in one:
      np.testing.assert_allclose(
        one[name], many[name], rtol=1e-5, atol=1e-6, err_msg=name
      )
    more = many.keys() - one.keys()
    assert all(name.startswith('moe/exchange_') for name in more)
  for name in ('params', 'balance'):
    trees = (getattr(found, name) for found in (alone[0], state))
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
      scale = np.abs(a).max()
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale + 1e-9)
  for leaf in jax.tree.leaves((state, metrics)):
    seen = {}
    for shard in leaf.addressable_shards:
      data = np.asarray(shard.data).tobytes()
      assert seen.setdefault(str(shard.index), data) == data
