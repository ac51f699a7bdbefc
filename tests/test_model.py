"""The model: scan, remat, ties, order, causality, decode and dtypes."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from moejax import config_io, losses, state, stats, step
from moejax.build import build

pytestmark = pytest.mark.usefixtures('quick_compilation')
RECIPES = sorted(
  path
  for path in pathlib.Path(__file__).parents[1].glob('configs/**/*.py')
  if 'def get_config' in path.read_text()
)
WEIGHTS = {'load': 0.01, 'z': 0.001}


def slow_if_published(path):
  # Compiles for seconds, and there is no end of papers.
  published = {'papers', 'pods'} & set(path.parts)
  marks = [pytest.mark.slow] if published else []
  return pytest.param(path, id=path.stem, marks=marks)


@functools.cache
def smoke(path):
  """The model of a recipe's smoke form, with its overlay for decoding."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config('smoke')
  overlay = dict(config.infer.overlay)
  return build(config_io.override(config, overlay).model)


def variables_of(model):
  """Random variables, made without compiling the initialisation.

  Norm scales are not 1: that would hide that one is not used.
  """
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    if 'scale' in name or 'bias' in name or leaf.ndim < 2:
      return 1 + 0.1 * noise
    return noise * leaf.shape[-1 if 'embedding' in name else -2] ** -0.5

  shapes = state.abstract_variables(model)[0]
  return jax.tree_util.tree_map_with_path(fill, shapes)


def gradients(model, batch):
  objective = step.objective(model, losses.cross_entropy, WEIGHTS)
  return jax.jit(jax.value_and_grad(objective, has_aux=True))


def two_blocks(small, **fields):
  blocks = {'sparse': small.sparse(), 'dense': small.dense(window=3)}
  return build(small.model(blocks, pattern=('sparse', 'dense'), **fields))


@pytest.fixture(scope='module')
def batch(small):
  return small.rows(0, padding=(2, 0), document=5)


@pytest.fixture(scope='module')
def scanned(small, batch):
  """(model, variables, value and gradients) of a scanned model."""
  model = two_blocks(small, repeats=2)
  variables = variables_of(model)
  objective = gradients(model, batch)
  return model, variables, objective(variables['params'], {}, batch)


def close(got, want, rtol=1e-5, atol=1e-7):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    got,
    want,
  )


def test_a_scan_equals_the_same_layers_one_after_another(small, batch, scanned):
  _, variables, ((value, (_, metrics, layers)), grads) = scanned
  flat = two_blocks(small, prefix=('sparse', 'dense'), repeats=1)

  def unrolled(tree):
    own = {k: v for k, v in tree.items() if k != 'layers'}
    own['before'] = jax.tree.map(lambda a: a[0], tree['layers'])
    own['layers'] = jax.tree.map(lambda a: a[1:], tree['layers'])
    return own

  (other, (_, metrics2, layers2)), grads2 = gradients(flat, batch)(
    unrolled(variables['params']), {}, batch
  )
  np.testing.assert_allclose(value, other, rtol=1e-6)
  close(metrics, metrics2)
  close(stats.summarise(layers), stats.summarise(layers2))
  close(unrolled(grads), grads2, atol=1e-6)


@pytest.mark.parametrize(
  'remat', ['full', pytest.param('dots', marks=pytest.mark.slow)]
)
def test_rematerialisation_changes_no_gradient(small, batch, scanned, remat):
  _, variables, ((value, _), grads) = scanned
  model = two_blocks(small, repeats=2, remat=remat)
  (other, _), grads2 = gradients(model, batch)(variables['params'], {}, batch)
  np.testing.assert_allclose(value, other, rtol=1e-6)
  close(grads, grads2, atol=1e-6)


def _count(jaxpr, op):
  """How often a program has an operation whose kernel is chosen later."""
  inner = (i for eqn in jaxpr.eqns for i in jaxprs_in_params(eqn.params))
  own = sum(eqn.params.get('op') == op for eqn in jaxpr.eqns)
  return own + sum(_count(i, op) for i in inner)


@pytest.mark.parametrize('remat', [None, 'full', 'dots'])
def test_the_backward_pass_never_chooses_experts_again(
  small, batch, scanned, remat
):
  variables = scanned[1]
  model = two_blocks(small, repeats=2, remat=remat)
  objective = step.objective(model, losses.cross_entropy, WEIGHTS)
  program = jax.make_jaxpr(jax.grad(objective, has_aux=True))(
    variables['params'], {}, batch
  )
  assert _count(program.jaxpr, 'top_k_route') == 1


def test_an_unknown_remat_and_an_unknown_block_are_refused(small, batch):
  ctx = small.context(batch)
  for fields, message in (
    ({'remat': 'some'}, "remat='some' is unknown; use None, full, dots"),
    ({'suffix': ('spare',)}, "'spare' is no block; known: dense, sparse"),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(two_blocks(small, **fields).init, jax.random.key(0), ctx)


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not(small, batch):
  ctx = small.context(batch)
  for tied in (True, False):
    model = build(small.model({'dense': small.dense()}, tied=tied))
    variables = variables_of(model)
    outputs, _ = jax.jit(model.apply)(variables, ctx)
    params = variables['params']
    head = params['embedding'].T if tied else params['head']
    np.testing.assert_array_equal(outputs.head_DV, head)
    assert ('head' in params) is not tied


def test_statistics_come_in_the_order_of_the_layers(small, batch):
  """Each layer chooses another number of experts: its count tells which."""
  blocks = {
    name: small.sparse(num_experts=experts, k=k)
    for name, experts, k in (('a', 4, 1), ('b', 8, 2), ('c', 4, 3))
  }
  model = build(
    small.model(
      blocks, pattern=('b', 'c'), repeats=2, prefix=('a', 'c'), suffix=('a',)
    )
  )
  ctx = small.context(batch)
  variables = variables_of(model)
  apply = functools.partial(model.apply, mutable=['stats', 'losses'])
  _, written = jax.jit(apply)(variables, ctx)
  tokens = int((batch['segments'] > 0).sum())
  layers = stats.per_layer(written['stats'])
  chosen = np.array([1, 3, 2, 3, 2, 3, 1])
  experts = np.array([4, 4, 8, 4, 8, 4, 4])
  peak = stats.summarise(layers)['moe/load_max_over_mean']
  mean = tokens * chosen / experts
  counts = np.asarray(peak) * mean
  # Counts are whole numbers, for each layer's own mean alone.
  np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
  totals = stats._each(lambda c: c.sum(-1), layers['counts'])
  np.testing.assert_array_equal(totals, tokens * chosen)
  assert stats.by_name(written['losses'])['z'].shape == (7,)


@pytest.mark.parametrize('path', list(map(slow_if_published, RECIPES)))
def test_no_token_sees_a_later_one_in(path, small):
  model = smoke(path)
  batch = small.rows(1, batch=2, length=6, vocab=model.vocab)
  ctx = small.context(batch)
  variables = variables_of(model)

  def nll(shift, t):
    """Loss at position t, with `shift` added to each token's embedding."""
    params = dict(variables['params'])
    table = params['embedding'][batch['tokens']] + shift
    params['embedding'] = jnp.concatenate(
      [params['embedding'], table.reshape(-1, model.width)]
    )
    if not model.tied:
      params['head'] = jnp.pad(params['head'], ((0, 0), (0, 12)))
    wide = model.clone(vocab=model.vocab + 12)
    ids = model.vocab + jnp.arange(12).reshape(2, 6)
    outputs, _ = wide.apply(
      variables | {'params': params}, ctx.replace(tokens_BT=ids)
    )
    logits = outputs.replace(hidden_BTD=outputs.hidden_BTD[:, t][:, None])
    return -jax.nn.log_softmax(logits.logits_BTV()[..., : model.vocab])[
      ..., 3
    ].sum()

  gradient = jax.jit(jax.grad(nll))
  for t in (0, 3, 5):
    g = np.abs(gradient(jnp.zeros((2, 6, model.width)), t)).max(-1)
    assert (g[:, t + 1 :] == 0).all()
    assert (g[:, : t + 1] > 0).all()


@pytest.mark.parametrize('path', list(map(slow_if_published, RECIPES)))
def test_prefill_and_decode_equal_the_full_forward_in(path, small):
  model = smoke(path)
  batch = small.rows(2, batch=2, length=7, vocab=model.vocab)
  ctx = small.context(batch)
  variables = variables_of(model)
  apply = jax.jit(model.apply)
  full = apply(variables, ctx)[0].logits_BTV()
  cache, start, parts = model.init_state(2, 7), 0, []
  for stop in (4, 5, 6, 7):
    part = jax.tree.map(lambda a, s=slice(start, stop): a[:, s], ctx)
    outputs, cache = apply(variables, part, cache)
    parts.append(outputs.logits_BTV())
    start = stop
  got = jnp.concatenate(parts, 1)
  np.testing.assert_allclose(got, full, rtol=1e-4, atol=1e-4)


def test_bf16_activations_keep_f32_parameters_and_gradients(
  small, batch, scanned
):
  _, variables, ((value, _), grads) = scanned
  model = two_blocks(small, repeats=2, dtype='bfloat16')
  outputs, _ = jax.eval_shape(model.apply, variables, small.context(batch))
  assert outputs.hidden_BTD.dtype == jnp.bfloat16
  (other, _), grads2 = gradients(model, batch)(variables['params'], {}, batch)
  np.testing.assert_allclose(other, value, rtol=0.02)
  for a in jax.tree.leaves(grads2):
    assert a.dtype == jnp.float32 and np.isfinite(a).all()
  dot = sum(
    (a * b).sum()
    for a, b in zip(
      jax.tree.leaves(grads2), jax.tree.leaves(grads), strict=True
    )
  )
  norms = [
    jnp.sqrt(sum((a**2).sum() for a in jax.tree.leaves(g)))
    for g in (grads, grads2)
  ]
  assert dot / (norms[0] * norms[1]) > 0.98


def test_flops_of_the_model_are_the_sum_of_its_layers(small):
  model = two_blocks(small, repeats=3)
  one = two_blocks(small, repeats=1)
  head = 2 * 16 * small.VOCAB
  assert model.flops(8) - head == 3 * (one.flops(8) - head)


def test_terms_outside_of_the_scan_are_known_by_their_shapes(small):
  sparse = dict(prefix=('sparse',), suffix=('sparse',))
  model = build(small.model(**sparse), 'model')
  ctx = small.context(small.rows(0))
  shapes = jax.eval_shape(model.init, jax.random.key(0), ctx)
  assert {'before', 'after', 'layers'} == set(shapes['losses'])
  assert stats.names(shapes['losses']) == {'load', 'z'}
