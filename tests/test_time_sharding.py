"""Devices that share sequences equal one device, whatever mixes the tokens."""

import jax
import numpy as np
import pytest

from configs import common
from moejax import sharding, step, validate
from moejax.parts import Parts

KDA = dict(
  rule=common.node('mixers.rules.kda'),
  decay=common.node('mixers.decays.Softplus'),
  write=common.node('mixers.writes.Sigmoid'),
)
RETENTION = dict(
  rule=common.node('mixers.rules.retention'),
  decay=common.node('mixers.decays.Retention'),
)


def linear(fields):
  mixer = common.node('mixers.LinearAttention', heads=2, **fields)
  return common.block(mixer, common.dense(16))


def memories(small):
  router = small.sparse().ffn.router
  mixer = common.node('mixers.MixtureOfMemories', router=router, heads=2)
  mixer.balance = {'load': common.node('balance.load')}
  return common.block(mixer, common.dense(16))


def config(small, blocks, **mesh):
  c = small.config(model=small.model(blocks))
  c.losses = {}
  c.mesh.update(mesh)
  c.train.seq_len = 16
  return c


def gradients(small, config):
  """The batch where it lives, the loss, and the gradients at some point."""
  parts = Parts(config)
  compute = jax.jit(
    jax.value_and_grad(
      step.objective(parts.model, parts.loss, dict(config.losses)),
      has_aux=True,
    ),
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: (0.3 * rng.normal(size=a.shape)).astype(np.float32),
    parts.variables[0]['params'],
  )
  with sharding.use(parts.mesh, parts.rules):
    # Documents of 7 tokens end within devices and between them.
    host = small.rows(0, batch=4, length=16, padding=(2, 0, 9, 1), document=7)
    batch = sharding.put_batch(host, parts.batch_sharding)
    (_, (_, metrics, _)), grads = compute(params, {}, batch)
  return batch, metrics['loss'], grads


def check_equal(small, monkeypatch, blocks, losses=None):
  def run(**mesh):
    c = config(small, blocks, **mesh)
    c.losses = losses or {}
    return gradients(small, c)

  batch, loss, grads = run(data=2, context=4)
  assert batch['tokens'].addressable_shards[0].data.shape == (2, 4)
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  _, want_loss, want = run(data=1, context=1)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
  paths = jax.tree_util.tree_leaves_with_path(grads)
  for (path, a), b in zip(paths, jax.tree.leaves(want), strict=True):
    name = jax.tree_util.keystr(path)
    for shard in a.addressable_shards[1:]:  # replicated, to the bit
      np.testing.assert_array_equal(shard.data, a.addressable_shards[0].data)
    a, b = np.asarray(a), np.asarray(b)
    error = np.sqrt(((a - b) ** 2).mean() / ((b**2).mean() + 1e-20))
    assert error < 1e-5, (name, error)


@pytest.mark.slow
def test_linear_mixers_give_the_loss_and_gradients_of_one_device(
  small, monkeypatch
):
  blocks = {'kda': linear(KDA), 'retention': linear(RETENTION)}
  check_equal(small, monkeypatch, blocks)


@pytest.mark.slow
def test_attention_experts_and_memories_do_so_too(small, monkeypatch):
  blocks = {'a': small.sparse(), 'b': memories(small)}
  losses = {'load': 0.01, 'z': 0.001}
  check_equal(small, monkeypatch, blocks, losses)


def test_sequences_that_cannot_be_shared_are_refused(small, monkeypatch):
  c = config(small, None, data=1, context=8)
  c.train.seq_len = 12
  with pytest.raises(ValueError, match='seq_len=12 .* by the 8 devices that'):
    validate.check_time(c, Parts(c))
  monkeypatch.setattr(jax, 'local_device_count', lambda: 4)
  c.train.seq_len = 16
  with pytest.raises(ValueError, match='8 devices share .* a process has 4'):
    validate.check_time(c, Parts(c))
