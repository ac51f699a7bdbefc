"""A pipeline gives what its layers give without one, in another schedule."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from configs import common
from moejax import (
  accounting,
  aot,
  evaluate,
  generate,
  losses,
  sharding,
  state,
  step,
  train,
  validate,
)
from moejax.aot import collectives
from moejax.build import ConfigError, build
from moejax.model import Model
from moejax.parts import Parts
from moejax.pipeline import Circular
from tests import steps

pytestmark = pytest.mark.usefixtures('quick_compilation')
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


@pytest.fixture(scope='module')
def alone(small):
  return run_plain(small, None)[0]


def check(got, want):
  """Values, what was written, and gradients."""
  close(got[0], want[0], 2e-6)
  close(got[1], want[1], 1e-5)


def test_two_stages_of_two_turns_equal_no_pipeline(small, alone):
  pipeline = Circular(stages=2, microbatches=4, repeats=2)
  got, compiled = run_plain(small, pipeline, 2)
  check(got, alone)
  sent = collectives.bytes_by_kind(compiled.as_text())['collective-permute']
  # 8 rows of 8 tokens of 16 numbers in f32; all of them are on each stage.
  stream_bytes = 8 * 8 * 16 * 4
  assert sent == pipeline.permute_bytes(stream_bytes)
  assert sent == 2 * (4 * 2 + 2 - 1) * (stream_bytes / 4)


@pytest.mark.slow
@pytest.mark.parametrize('remat', [None, 'full', 'dots'])
@pytest.mark.parametrize(
  'stages,microbatches,repeats,devices',
  [(2, 2, 1, 2), (2, 8, 4, 2), (4, 4, 1, 4), (4, 8, 2, 4), (4, 4, 2, 1)],
)
def test_stages_equal_no_pipeline(
  small, alone, stages, microbatches, repeats, devices, remat
):
  pipeline = Circular(stages, microbatches, repeats)
  check(run_plain(small, pipeline, devices, remat=remat)[0], alone)


@pytest.mark.slow
def test_layers_before_and_after_the_stages_are_spread_by_rows(small):
  fields = dict(prefix=('plain',), suffix=('plain', 'plain'))
  want, _ = run_plain(small, None, **fields)
  pipeline = Circular(stages=4, microbatches=4, repeats=2)
  check(run_plain(small, pipeline, 4, **fields)[0], want)


@pytest.mark.slow
def test_stages_may_be_of_two_processes(alone, tmp_path, two_processes):
  path = tmp_path / 'out.npz'
  two_processes('stages_of_two.py', path)
  ((value, _), grads), found = alone, np.load(path)
  close(
    [found[name] for name in found.files], jax.tree.leaves((value, grads)), 1e-5
  )


@pytest.mark.parametrize('repeats', [1, 2])
def test_the_bubble_is_what_stages_run_beside_their_microbatches(
  small, repeats
):
  seen = []
  pipeline = Circular(stages=4, microbatches=4, repeats=repeats)
  model = plain(pipeline, lambda layer: seen.append(int(layer)))
  variables = placed(model, sharding.make_mesh({}, jax.devices()[:1]))
  batch = small.context(small.rows(0, batch=8))
  jax.block_until_ready(jax.jit(model.apply)(variables, batch))
  jax.effects_barrier()
  each = np.bincount(seen, minlength=LAYERS)
  # A stage runs the layers of one turn in each iteration.
  iterations = len(seen) / (LAYERS / repeats)
  assert iterations == pipeline.iterations
  assert (each >= 4).all()  # each layer on each micro-batch
  idle = len(seen) - LAYERS * 4
  assert idle / len(seen) == pipeline.bubble_frac == 3 / (4 * repeats + 3)


def scan_outputs(jaxpr, length):
  """Shapes of what scans of a length stack up."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'scan' and eqn.params['length'] == length:
      for v in eqn.outvars[eqn.params['num_carry'] :]:
        yield v.aval.shape
    for inner in jaxprs_in_params(eqn.params):
      yield from scan_outputs(inner, length)


def dot_flops(jaxpr, times=1):
  """FLOPs of products, loops and devices included."""
  total = 0
  for eqn in jaxpr.eqns:
    inside = times * (
      eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    )
    if eqn.primitive.name == 'dot_general':
      (left, _), _ = eqn.params['dimension_numbers']
      summed = [eqn.invars[0].aval.shape[i] for i in left]
      total += times * 2 * math.prod((*eqn.outvars[0].aval.shape, *summed))
    for inner in jaxprs_in_params(eqn.params):
      total += dot_flops(inner, inside)
  return total


def traced(small, pipeline, **fields):
  model = plain(pipeline, **fields)
  shapes, _ = state.abstract_variables(model)
  compute = jax.value_and_grad(objective(model), has_aux=True)
  batch = small.rows(0, batch=8)
  return jax.make_jaxpr(compute)(shapes['params'], shapes['balance'], batch)


@pytest.mark.parametrize('remat', [None, 'full', 'dots'])
def test_the_backward_pass_keeps_as_much_as_without_and_no_weights(
  small, remat
):
  pipeline = Circular(stages=2, microbatches=4, repeats=2)
  program = traced(small, pipeline, remat=remat).jaxpr
  shapes = list(scan_outputs(program, pipeline.iterations))
  assert any(shape[-2:] == (8, 16) for shape in shapes)  # inputs of layers
  assert not any(shape[-2:] == (16, 16) for shape in shapes)
  # It computes again what it does without, once for each useful iteration.
  alone = dot_flops(traced(small, None, remat=remat).jaxpr)
  outside = 3 * 2 * 8 * 8 * 16 * 32  # of the head
  ratio = (dot_flops(program) - outside) / (alone - outside)
  assert ratio == pytest.approx(1 / (1 - pipeline.bubble_frac), rel=1e-3)


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize('padding', [(0,), (2, 0, 8, 1)])
def test_terms_by_row_and_token_are_of_the_batch_and_others_of_its_parts(
  small, padding
):
  c = sparse_config(small)
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
  del now, alone


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_variables_costs_and_decoding_are_those_without_a_pipeline(small):
  c = small.config(model=small.model({'dense': small.dense()}, repeats=4))
  want = build(c.model)
  got = build(common.pipeline(c, stages=2, microbatches=4, repeats=2).model)
  shapes, names = state.abstract_variables(got)
  assert (shapes, names) == state.abstract_variables(want)
  assert accounting.describe(got, 8) == accounting.describe(want, 8)
  cache = got.init_state(2, 8)
  ctx = small.context(small.rows(0))
  programs = [
    str(jax.make_jaxpr(model.apply)(shapes, ctx, cache))
    for model in (want, got)
  ]
  assert programs[0] == programs[1]


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(stages=4, microbatches=6), 'microbatches=6 is not a multiple of'),
    (dict(stages=0, microbatches=4), 'stages=0 must be at least 1'),
    (dict(stages=2, microbatches=2, repeats=0), 'repeats=0 must be at least'),
  ],
)
def test_schedules_that_cannot_be_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message) as error:
    build(common.node('pipeline.Circular', **fields), 'config.model.pipeline')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'change,message',
  [
    (dict(stages=3, microbatches=3), 'the 4 repeats of the pattern are not'),
    (dict(stages=2, microbatches=2, repeats=4), 'not divisible by 8 '),
    (dict(stages=4, microbatches=4, pipe=2), 'into 2 parts; set config.mesh'),
    (dict(stages=2, microbatches=16), 'batch_size=8 is not divisible by 16 '),
    (dict(stages=2, microbatches=4, fsdp=4), r'by 16 \(4 microbatches of'),
    (dict(pipe=2), 'config.mesh.pipe=2, but config.model.pipeline is None'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(small, change, message):
  c = small.config(model=small.model({'dense': small.dense()}, repeats=4))
  c.mesh.update(data=-1)
  mesh = {k: change.pop(k) for k in ('pipe', 'fsdp') if k in change}
  if change:
    common.pipeline(c, **change)
  c.mesh.update(mesh)
  sizes = math.prod(s for s in c.mesh.values() if s > 0)
  with pytest.raises(ValueError, match=message) as error:
    validate.check_pipeline(c, Parts(c, jax.devices()[:sizes]))
  assert '\n' not in str(error.value)


def test_a_batch_that_micro_batches_do_not_divide_is_refused(small):
  model = plain(Circular(stages=2, microbatches=4))
  shapes, _ = state.abstract_variables(model)
  ctx = small.context(small.rows(0, batch=6))
  with pytest.raises(ValueError, match='batch of 6 rows is not divisible'):
    jax.eval_shape(model.apply, shapes, ctx)


@pytest.mark.slow
@pytest.mark.parametrize('exchange', [None, 'AllToAll'])
def test_stages_compile_for_a_tpu_and_send_what_the_formula_says(exchange):
  """Two stages of two chips each, by rows or by experts."""
  from configs import tiny

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


@pytest.mark.slow
def test_a_checkpoint_is_read_without_stages_and_writes_the_same(
  small, text, tmp_path
):
  """Trained in stages on eight devices; then read by other configs."""
  c = small.config(data=text)
  c.model = small.model({'sparse': small.sparse()}, repeats=4, vocab=257)
  c.infer.max_tokens = 8
  c.checkpoint.every_steps = 2
  c.train.steps = 2
  alone = c.copy_and_resolve_references()
  common.pipeline(c, stages=2, microbatches=2, repeats=2)
  train.run(c, str(tmp_path))
  staged = evaluate.run(c, str(tmp_path))
  assert staged == pytest.approx(evaluate.run(alone, str(tmp_path)), rel=1e-6)
  written = generate.run(c, str(tmp_path), ['a bit'])
  assert written == generate.run(alone, str(tmp_path), ['a bit'])
  # The optimiser's state as well, which evaluation does not read.
  states = []
  for config in (c, alone):
    parts = Parts(config)
    with sharding.use(parts.mesh, parts.rules):
      now, at = evaluate.restore(parts, str(tmp_path))
    assert at == 2
    states.append(jax.tree.map(np.asarray, now))
  jax.tree.map(np.testing.assert_array_equal, *states)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(states[0].opt_state))
