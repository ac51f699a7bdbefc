"""Kinds of layers fold the same devices in their own ways, to equal results."""

import jax
import numpy as np
import pytest

from configs import common
from moejax import sharding, step, validate
from moejax.parts import Parts

pytestmark = pytest.mark.usefixtures('quick_compilation')
# Mesh, and rules of layers of experts.
FOLDINGS = {
  'experts over tensor': (
    dict(fsdp=2, expert=2, tensor=2),
    dict(expert=('expert', 'tensor'), mlp=None),
  ),
  'fully sharded': (dict(fsdp=8), {}),
  'tensor': (dict(data=2, fsdp=2, tensor=2), {}),
  'experts over context': (
    dict(expert=2, context=2, tensor=2),
    dict(expert=('expert', 'context'), embed=None),
  ),
  'attention over experts': (dict(data=2, expert=4), dict(embed='data')),
}


def slow_but_the_first(name):
  marks = [] if name == next(iter(FOLDINGS)) else [pytest.mark.slow]
  return pytest.param(name, id=name, marks=marks)


def config(small, mesh=None, rules=None, **changes):
  ffn = common.moe(4, k=2, hidden=8, shared=16)
  ffn.dispatch = common.node('dispatch.AllToAll')
  block = common.block(common.attention(4, 2), ffn)
  c = small.config(model=small.model({'sparse': block}, **changes))
  c.mesh = mesh or dict(data=1)
  own = tuple((f'moe/{name}', to) for name, to in (rules or {}).items())
  c.rules = (*c.rules, *own)
  return c


def gradients(small, *args, devices=None):
  """(loss, gradients, parts), the latter two on the host."""
  parts = Parts(config(small, *args), devices)
  validate.check_shardings(parts.config, parts)
  compute = step.objective(parts.model, parts.loss, dict(parts.config.losses))
  with sharding.use(parts.mesh, parts.rules):
    now = parts.new_state()
    batch = sharding.put_batch(
      small.rows(0, batch=8, padding=(2, 0)), parts.batch_sharding
    )
    (loss, _), grads = jax.jit(
      jax.value_and_grad(compute, has_aux=True),
      out_shardings=((None, None), parts.state_shardings.params),
    )(now.params, now.balance, batch)
  return float(loss), jax.tree.map(np.asarray, grads), now.params


@pytest.fixture(scope='module')
def alone(small):
  return gradients(small, devices=jax.devices()[:1])


@pytest.mark.parametrize('name', list(map(slow_but_the_first, FOLDINGS)))
def test_foldings_agree_with_one_device(name, small, alone):
  loss, grads, params = gradients(small, *FOLDINGS[name])
  np.testing.assert_allclose(loss, alone[0], rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (alone[1], grads)), strict=True):
    error = np.sqrt(np.mean((a - b) ** 2) / max(np.mean(a**2), 1e-12))
    assert error < 1e-5
  # Whole on no device, but for what is small.
  experts = params['layers']['blocks_0']['ffn']['experts']['gate']
  assert experts.sharding.shard_shape(experts.shape) != experts.shape


@pytest.mark.parametrize(
  'mesh,rules,message',
  [
    (dict(tensor=8), None, "axis 'vocab' of parameter .* is 36, which is not"),
    (dict(fsdp=4, spare=2), None, 'config.mesh.spare=2, but no rule'),
    (dict(data=8), (('batch', 'data'),), "has the axis '[a-z]+', for which"),
  ],
)
def test_mistakes_of_sharding_are_told_before_anything_compiles(
  mesh, rules, message, small
):
  c = config(small, mesh, vocab=36)
  c.rules = rules or c.rules
  with pytest.raises(ValueError, match=message) as error:
    validate.check_shardings(c, Parts(c))
  assert '\n' not in str(error.value)
