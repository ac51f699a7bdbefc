"""The grouped matrix product over a mesh that the compiler partitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pallas_kernels.grouped_matmul.api import grouped_matmul
from tests.kernels.oracle import assert_close, product

D, F = 12, 10


def _mesh():
  return jax.make_mesh(
    (4, 2), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2
  )


@pytest.mark.parametrize('implementation', [None, 'ragged_dot'])
@pytest.mark.parametrize(
  'rows, sizes', [(64, (9, 0, 33, 12)), (61, (0, 61, 0, 0)), (3, (1, 0, 1, 0))]
)
def test_rows_spread_over_devices_equal_the_loop(rows, sizes, implementation):
  draw = np.random.default_rng(0).normal
  x, dy = draw(size=(rows, D)), draw(size=(rows, F))
  w = draw(size=(4, D, F))
  x[sum(sizes) :] = dy[sum(sizes) :] = np.nan

  @jax.jit
  def run(x, w, dy):
    def f(x, w):
      sizes_E = jnp.array(sizes, jnp.int32)
      return grouped_matmul(x, w, sizes_E, implementation=implementation)

    y, pull = jax.vjp(f, x, w)
    return y, *pull(dy)

  mesh = _mesh()
  experts = NamedSharding(mesh, PartitionSpec('expert'))
  with jax.set_mesh(mesh):
    args = (jnp.asarray(a, jnp.float32) for a in (x, w, dy))
    x32, w32, dy32 = args
    got = run(x32, jax.device_put(w32, experts), dy32)
  assert_close(got, product(x, w, sizes, dy), 1e-5)
  shards = [np.asarray(s.data) for s in got[2].addressable_shards]
  where = [s.index for s in got[2].addressable_shards]
  for shard, index in zip(shards, where, strict=True):
    np.testing.assert_array_equal(shard, np.asarray(got[2])[index])


def test_inside_shard_map_over_one_axis_the_other_is_spread():
  mesh, rows = _mesh(), PartitionSpec('data')
  draw = np.random.default_rng(0).normal
  x, w = draw(size=(64, D)), draw(size=(4, D, F))
  sizes = np.array([[3, 5, 0, 8], [0, 0, 16, 0], [1, 1, 1, 1], [0, 0, 0, 0]])

  @jax.jit
  @jax.shard_map(
    in_specs=(rows, PartitionSpec(), rows),
    out_specs=rows,
    mesh=mesh,
    axis_names={'data'},
    check_vma=False,
  )
  def run(x, w, sizes_1E):
    return grouped_matmul(x, w, sizes_1E[0])

  args = (jnp.asarray(a, jnp.float32) for a in (x, w))
  with jax.set_mesh(mesh):
    y = run(*args, jnp.array(sizes, jnp.int32))
  want = np.zeros((4, 16, F))
  for part, own in enumerate(sizes):
    for r, e in enumerate(np.repeat(np.arange(4), own)):
      want[part, r] = x[16 * part + r] @ w[e]
  np.testing.assert_allclose(y, want.reshape(64, F), rtol=1e-5, atol=1e-5)
