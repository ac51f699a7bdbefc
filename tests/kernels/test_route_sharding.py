"""Routing over several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pallas_kernels.route.api import permutation, top_k_route
from pallas_kernels.route.rows import combine, gather_rows

TOKENS, EXPERTS, K = 64, 8, 2
SPEC = PartitionSpec(('data', 'expert'))


@pytest.fixture(scope='module')
def mesh():
  return jax.make_mesh(
    (4, 2), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2
  )


def _layer(logits, x):
  """Tokens to rows and back, with the gradient of both arguments."""

  def there_and_back(logits, x):
    ids, weights, _ = top_k_route(logits, K)
    plan = permutation(ids, EXPERTS)
    return combine(gather_rows(x, plan), weights, plan)

  y, pull = jax.vjp(there_and_back, logits, x)
  return y, *pull(jnp.cos(x))


@pytest.fixture(scope='module')
def args():
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.normal(size=(TOKENS, d)), jnp.float32) for d in (EXPERTS, 4)
  ]


def _kernels(traced, platform):
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  return sum(text.count(name) for name in ('tpu_custom_call', 'xla.gpu.triton'))


def _assert_equals_one_device(f, args):
  for a, b in zip(f(*args), jax.jit(_layer)(*args), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_each_device_routes_its_own_tokens_by_the_kernels(mesh, args):
  f = jax.jit(jax.shard_map(_layer, mesh=mesh, in_specs=SPEC, out_specs=SPEC))
  _assert_equals_one_device(f, args)
  assert all(_kernels(f.trace(*args), p) for p in ('tpu', 'cuda'))


def test_what_the_compiler_partitions_holds_no_kernel(mesh, args):
  where = NamedSharding(mesh, SPEC)
  args = [jax.device_put(a, where) for a in args]
  with jax.set_mesh(mesh):
    f = jax.jit(_layer, in_shardings=where)
    _assert_equals_one_device(f, args)
    assert not any(_kernels(f.trace(*args), p) for p in ('tpu', 'cuda'))
    with pytest.raises(NotImplementedError, match='axes data, expert'):
      top_k_route(args[0], K, implementation='mosaic')
