"""Models in stages: one of plain layers, and how two results are compared."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moejax import losses, sharding, state, step
from moejax.model import Model

LAYERS = 8


class Plain(nn.Module):
  """One product; tells `ran` of each call, and counts its tokens."""

  ran: object = None

  @nn.compact
  def __call__(self, stream, ctx, state=None):
    x = stream.x_BTD
    init = nn.with_logical_partitioning(
      nn.initializers.lecun_normal(), ('embed', 'mlp')
    )
    kernel = self.param('kernel', init, (x.shape[-1],) * 2)
    valid = ctx.valid_N.reshape(x.shape[:2])[..., None]
    y = jnp.tanh(x @ kernel) * (1 + ctx.layer)
    if self.ran is not None:
      jax.debug.callback(self.ran, ctx.layer)
    total = jnp.where(valid, y, 0).sum((0, 1))
    self.sow('losses', 'mean', (total / jnp.maximum(valid.sum(), 1)).sum())
    seen = self.variable('balance', 'counts', jnp.zeros, (2,), jnp.float32)
    if self.is_mutable_collection('balance') and not self.is_initializing():
      seen.value = seen.value + valid.sum() * jnp.arange(1.0, 3.0)
    return stream.replace(x_BTD=x + y), state


def plain(pipeline=None, ran=None, **fields):
  return Model(
    vocab=32,
    width=16,
    blocks={'plain': Plain(ran)},
    pattern=('plain',),
    repeats=LAYERS,
    pipeline=pipeline,
    **fields,
  )


def placed(model, mesh):
  """Variables where they live, by the rules of the house."""
  shapes, names = state.abstract_variables(model)
  rng = np.random.default_rng(0)

  def put(s, where):
    value = (0.3 * rng.normal(size=s.shape)).astype(s.dtype)
    return jax.make_array_from_callback(s.shape, where, value.__getitem__)

  where = sharding.shardings(names, mesh, sharding.RULES)
  return jax.tree.map(put, shapes, where)


def objective(model):
  return step.objective(model, losses.cross_entropy, {'mean': 0.1})


def run_plain(small, pipeline, devices=1, **fields):
  """(value, written, gradients) and the compiled program."""
  model = plain(pipeline, **fields)
  mesh = sharding.make_mesh({'pipe': devices}, jax.devices()[:devices])
  with sharding.use(mesh, sharding.RULES):
    variables = placed(model, mesh)
    batch = sharding.put_batch(
      small.rows(0, batch=8, padding=(2, 0, 8, 1)),
      sharding.batch_sharding(mesh, sharding.RULES),
    )
    args = variables['params'], variables['balance'], batch
    compute = jax.value_and_grad(objective(model), has_aux=True)
    compiled = jax.jit(compute).lower(*args).compile()
    return jax.tree.map(np.asarray, compiled(*args)), compiled


def close(got, want, rtol=1e-6):
  """Each array by its own size."""
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    scale = np.abs(b).max() if b.size else 0
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale + 1e-9)


def check(got, want):
  """Values, what was written, and gradients."""
  close(got[0], want[0], 2e-6)
  close(got[1], want[1], 1e-5)
