"""A pipeline gives what its layers give without one, in another schedule."""

import math

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from configs import common
from moejax import (
  accounting,
  evaluate,
  generate,
  sharding,
  state,
  train,
  validate,
)
from moejax.aot import collectives
from moejax.build import ConfigError, build
from moejax.parts import Parts
from moejax.pipeline import Circular
from tests.stages import (
  LAYERS,
  check,
  close,
  objective,
  placed,
  plain,
  run_plain,
)

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture(scope='module')
def alone(small):
  return run_plain(small, None)[0]


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
