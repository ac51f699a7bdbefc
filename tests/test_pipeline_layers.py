"""Whatever layers do across devices they do within the stages of a pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from configs import common, tiny
from moejax import aot, losses, sharding, state, step, validate
from moejax.build import build
from moejax.parts import Parts
from tests import steps
from tests.stages import close

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('quick_compilation'),
]


def sparse_config(small, dispatch='Sort', **changes):
  ffn = common.moe(4, k=2, hidden=8, shared=8)
  ffn.router = steps.router()
  ffn.dispatch = common.node(f'dispatch.{dispatch}')
  ffn.balance = {
    'load': common.node('balance.load'),
    'all': common.node('balance.GlobalBatch'),
    'rows': common.node('balance.per_sequence'),
    'z': common.node('balance.z'),
  }
  block = common.block(common.attention(2, 2), ffn)
  c = small.config(
    model=small.model({'sparse': block}, repeats=4, **changes),
    losses={'load': 0.1, 'all': 0.05, 'rows': 0.2, 'z': 0.01},
  )
  c.mesh.update(data=1)
  return c


def one_step(small, c, devices, accumulate=1, padding=(2, 0, 8, 1)):
  """(state, metrics) after a step from the same state, on the host."""
  parts = Parts(c, jax.devices()[:devices])
  validate.check_program(c, parts)
  with sharding.use(parts.mesh, parts.rules):
    batch = sharding.put_batch(
      small.rows(0, batch=8, padding=padding), parts.batch_sharding
    )
    c.train.accumulate = accumulate
    new, metrics = parts.train_step(parts.new_state(), batch)
    return jax.tree.map(np.asarray, (new, metrics))


def by_hand(small, c, parts_count):
  """Loss, terms and gradients of parts of a batch, one after another.

  Terms are averaged by tokens, those of rows by rows.
  """
  parts = Parts(c, jax.devices()[:1])
  host = small.rows(0, batch=8, padding=(2, 0, 8, 1))
  valid = host['segments'] > 0

  def share(count, rows):
    return count[rows].sum() / count.sum()

  def compute(params, balance):
    hidden, terms, outputs = [], dict.fromkeys(c.losses, 0.0), None
    for m in range(parts_count):
      rows = slice(m, None, parts_count)
      (outputs, _), written = parts.model.apply(
        {'params': params, 'balance': balance},
        state.context({k: v[rows] for k, v in host.items()}, train=True),
        mutable=['losses', 'balance', 'stats'],
      )
      balance = written['balance']
      hidden.append(outputs.hidden_BTD)
      for name, value in written['losses']['layers']['blocks_0']['ffn'].items():
        count = valid.any(1) if name == 'rows' else valid.sum(1)
        terms[name] += share(count, rows) * value[0]
    order = np.argsort(
      [
        m + parts_count * i
        for m in range(parts_count)
        for i in range(8 // parts_count)
      ]
    )
    outputs = outputs.replace(hidden_BTD=jnp.concatenate(hidden)[order])
    main = losses.cross_entropy(outputs, host)
    total = main + sum(c.losses[n] * v.sum() for n, v in terms.items())
    return total, (main, terms, balance)

  with sharding.use(parts.mesh, parts.rules):
    now = parts.new_state()
    return jax.tree.map(
      np.asarray,
      jax.jit(jax.value_and_grad(compute, has_aux=True))(
        now.params, now.balance
      ),
    )


def pipelined(small, c, devices):
  parts = Parts(c, jax.devices()[:devices])
  validate.check_program(c, parts)
  compute = step.objective(parts.model, parts.loss, dict(c.losses))
  with sharding.use(parts.mesh, parts.rules):
    now = parts.new_state()
    batch = sharding.put_batch(
      small.rows(0, batch=8, padding=(2, 0, 8, 1)), parts.batch_sharding
    )
    return jax.tree.map(
      np.asarray,
      jax.jit(jax.value_and_grad(compute, has_aux=True))(
        now.params, now.balance, batch
      ),
    )


@pytest.fixture(scope='module')
def one_by_one(small):
  return by_hand(small, sparse_config(small), 2)


MESHES = [
  ('Sort', 1, dict(pipe=1)),
  ('Sort', 2, dict(pipe=2)),
  ('Sort', 4, dict(pipe=2, fsdp=2)),
  ('Sort', 4, dict(pipe=2, data=2)),
  ('Sort', 4, dict(pipe=2, tensor=2)),
  ('Sort', 4, dict(pipe=2, context=2)),
  ('Einsum', 4, dict(pipe=2, expert=2)),
  ('Ring', 4, dict(pipe=2, expert=2)),
  ('AllToAll', 4, dict(pipe=2, expert=2)),
  ('RaggedAllToAll', 4, dict(pipe=2, expert=2)),
  ('AllToAll', 8, dict(pipe=2, expert=2, fsdp=2)),
]


@pytest.mark.parametrize('repeats', [1, 2])
@pytest.mark.parametrize('dispatch,devices,mesh', MESHES)
def test_mixtures_in_stages_equal_micro_batches_one_by_one(
  small, one_by_one, dispatch, devices, mesh, repeats
):
  (_, (main, terms, balance)), want = one_by_one
  c = sparse_config(small, dispatch)
  if dispatch == 'Einsum':
    c.model.blocks.sparse.ffn.dispatch.capacity_factor = 4.0
  common.pipeline(c, stages=2, microbatches=2, repeats=repeats)
  c.mesh.update(mesh)
  (_, (new, metrics, _)), grads = pipelined(small, c, devices)
  np.testing.assert_allclose(metrics['loss'], main, rtol=1e-6)
  for name, value in terms.items():
    got = metrics[f'losses/{name}']
    np.testing.assert_allclose(got, value.mean(), rtol=2e-6, err_msg=name)
  close(new, balance)
  close(grads, want, 1e-5)


@pytest.mark.parametrize('padding', [(0,), (2, 0, 8, 1)])
def test_terms_by_row_and_token_are_of_the_batch_and_others_of_its_parts(
  small, padding
):
  c = sparse_config(small)
  c.train.bias_update = common.node('balance.bias_update')
  alone, want = one_step(small, c, 1, padding=padding)
  common.pipeline(c, stages=2, microbatches=4, repeats=2)
  now, got = one_step(small, c, 2, padding=padding)
  for name in ('loss', 'losses/rows', 'losses/z'):
    np.testing.assert_allclose(got[name], want[name], rtol=2e-6, err_msg=name)
  for name in ('losses/load', 'losses/all'):
    assert abs(got[name] - want[name]) > 1e-4, name
  for name, value in want.items():
    if name.startswith('moe/') or name == 'tokens':
      np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)
  close(now.balance, alone.balance)
  assert any((leaf != 0).any() for leaf in jax.tree.leaves(now.balance))


def test_a_step_is_that_of_as_many_accumulated_micro_batches(small):
  """Without padding, where all parts weigh the same."""
  c = sparse_config(small)
  c.train.bias_update = common.node('balance.bias_update')
  want, want_metrics = one_step(small, c, 1, accumulate=4, padding=(0,))
  c.train.accumulate = 1
  common.pipeline(c, stages=2, microbatches=4, repeats=1)
  got, metrics = one_step(small, c, 2, padding=(0,))
  for name, value in want_metrics.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name
    )
  close(got.balance, want.balance)
  bias = jax.tree.leaves(got.balance)
  assert any((leaf != 0).any() for leaf in bias)
  for a, b in zip(
    *map(jax.tree.leaves, (got.params, want.params)), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def count(jaxpr, op):
  own = sum(eqn.params.get('op') == op for eqn in jaxpr.eqns)
  inner = (i for eqn in jaxpr.eqns for i in jaxprs_in_params(eqn.params))
  return own + sum(count(i, op) for i in inner)


@pytest.mark.parametrize('remat', [None, 'full', 'dots'])
def test_the_backward_pass_never_chooses_experts_again(small, remat):
  c = sparse_config(small, remat=remat)
  common.pipeline(c, stages=2, microbatches=4, repeats=2)
  model = build(c.model)
  shapes, _ = state.abstract_variables(model)
  compute = step.objective(model, losses.cross_entropy, dict(c.losses))
  program = jax.make_jaxpr(jax.grad(compute, has_aux=True))(
    shapes['params'], shapes['balance'], small.rows(0, batch=8)
  )
  assert count(program.jaxpr, 'top_k_route') == 1


def test_layers_share_a_memory_across_stages(small):
  memory = common.node(
    'memory.ProductKey',
    keys=4,
    k=2,
    heads=1,
    head_dim=4,
    values=common.node('memory.tables.Window', of='values'),
  )
  block = common.block(common.attention(2, 1), common.beside(memory, hidden=8))
  c = small.config(
    model=small.model(
      {'memory': block}, repeats=4, shared={'values': common.table(16)}
    ),
    losses={},
  )
  c.mesh.update(data=1)
  (want, _), want_grads = pipelined(small, c, 1)
  common.pipeline(c, stages=2, microbatches=4, repeats=2)
  (got, _), grads = pipelined(small, c, 2)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  close(grads, want_grads, 1e-5)


def test_sequences_are_shared_within_stages(small):
  mixer = common.node(
    'mixers.LinearAttention',
    rule=common.node('mixers.rules.kda'),
    decay=common.node('mixers.decays.Softplus'),
    write=common.node('mixers.writes.Sigmoid'),
    heads=2,
  )
  blocks = {'kda': common.block(mixer, common.dense(16))}
  c = small.config(model=small.model(blocks, repeats=2), losses={})
  c.mesh.update(data=1)
  (want, _), want_grads = pipelined(small, c, 1)
  common.pipeline(c, stages=2, microbatches=2)
  c.mesh.update(context=2)
  (got, _), grads = pipelined(small, c, 4)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  close(grads, want_grads, 1e-5)


@pytest.mark.parametrize('exchange', [None, 'AllToAll'])
def test_stages_compile_for_a_tpu_and_send_what_the_formula_says(exchange):
  """Two stages of two chips each, by rows or by experts."""
  config = tiny.get_config('smoke')
  config.model.dtype, config.model.remat = 'bfloat16', 'full'
  config.model.repeats, config.train.batch_size = 4, 16
  if exchange:
    config.model.blocks.sparse.ffn.dispatch = common.node(
      f'dispatch.{exchange}'
    )
    config.mesh.update(data=1, expert=2)
  common.pipeline(config, stages=2, microbatches=4, repeats=2)
  report = aot.check(config, 'v5e:2x2')
  assert report.fits
  pipeline = build(config.model.pipeline)
  stream_bytes = 16 / 2 * 128 * 128 * 2  # half the rows, in bf16
  sent = report.collective_bytes['collective-permute']
  assert sent == pipeline.permute_bytes(stream_bytes)
