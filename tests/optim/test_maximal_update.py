"""Maximal updates: factors by hand, and features that move alike in width."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from moejax import losses, optim, parts, sharding, state
from moejax.optim.parameters import Parameter
from moejax.types import Stream

pytestmark = pytest.mark.usefixtures('quick_compilation')
BASE, WIDTH = 128, 512  # r = 4
ADAM = optim.AdamW()
MUON = optim.Muon()
MAXIMAL = optim.MaximalUpdate(base_width=BASE)
VOCAB, LENGTH = 64, 8  # far fewer tokens than the width, or sums average out

# Shape at r = 4, axes; then factors of the start, of Adam and of Muon.
KINDS = {
  'hidden': ((128, 8, 16), ('embed', 'heads', 'kv'), 1, 1 / 4, 1 / 2),
  'out': ((8, 16, 128), ('heads', 'kv', 'embed'), 1, 1 / 4, 1 / 2),
  'dense': ((1, 128, 256), (None, 'embed', 'mlp'), 1, 1 / 4, 1 / 2),
  'experts': ((16, 128, 256), ('expert', 'embed', 'mlp'), 1, 1 / 4, 1 / 2),
  'scanned': (
    (3, 16, 256, 128),
    ('layers', 'expert', 'mlp', 'embed'),
    *(1, 1 / 4, 1 / 2),
  ),
  'memories': ((5, 128, 64), ('memory', 'embed', 'heads'), 1, 1 / 4, 1 / 2),
  'router': ((128, 16), ('embed', 'router'), 1 / 2, 1 / 4, 1 / 4),
  'low rank in': ((128, 8), ('embed', None), 1 / 2, 1 / 4, 1 / 4),
  'low rank out': ((8, 8, 16), (None, 'heads', 'kv'), 1, 1, 1),
  'filter': ((4, 8, 16), (None, 'heads', 'kv'), 1, 1, 1),
  'norm/scale': ((128,), ('embed',), 1, 1, 1),
  'scanned norm/scale': ((3, 128), ('layers', 'embed'), 1, 1, 1),
  'rates': ((8,), ('heads',), 1, 1, 1),
  'embedding': ((257, 128), ('vocab', 'embed'), 1, 1 / 2, 1 / 2),
  'head': ((128, 257), ('embed', 'vocab'), 1, 1 / 2, 1 / 2),
}


@pytest.mark.parametrize('kind', KINDS)
def test_factors_are_those_of_the_table(kind):
  shape, names, start, adam, muon = KINDS[kind]
  parameter = Parameter(kind, shape, names)
  assert MAXIMAL.init_scale(parameter, WIDTH) == start
  for optimizer, label, want in ((ADAM, 'adamw', adam), (MUON, 'muon', muon)):
    rules = optimizer.rules({kind: parameter})
    if kind in ('embedding', 'head', 'norm/scale', 'rates'):
      label = 'adamw'  # as Muon itself says
      assert optimizer.label(parameter) == label
    got = MAXIMAL.lr_scale(parameter, rules[label], WIDTH)
    assert got == pytest.approx(want, rel=1e-12), (kind, label)
    at_base = MAXIMAL.lr_scale(parameter, rules[label], BASE)
    assert at_base == 1.0 or got == want, kind
  assert MAXIMAL.logits_scale(WIDTH) == 1 / 2


def test_what_does_not_grow_is_left_out():
  fixed = optim.MaximalUpdate(BASE, grows=('embed', 'heads'))
  down = Parameter('down', (16, 64, 128), ('expert', 'mlp', 'embed'))
  rule = ADAM.rules({})['adamw']
  assert fixed.lr_scale(down, rule, WIDTH) == 1.0
  assert MAXIMAL.lr_scale(down, rule, WIDTH) == 1 / 4


def test_a_base_that_is_no_width_is_refused():
  with pytest.raises(ValueError, match='base_width=0 is no width'):
    optim.MaximalUpdate(base_width=0)


def _config(width, maximal, optimizer, rate, tied=True):
  config = common.base()
  ffn = common.moe(4, k=2, hidden=width)
  layer = common.block(common.attention(width // 16), ffn)
  config.model = common.uniform(layer, 1, vocab=VOCAB, width=width, tied=tied)
  if maximal:
    config.model.parametrization = common.node(
      'optim.MaximalUpdate', base_width=BASE
    )
  config.optim = common.node(
    'optim.Chain',
    optimizer=optimizer,
    schedule=common.node('optim.constant', peak=rate, warmup_steps=0),
  )
  config.mesh = dict(data=1, expert=1, context=1)
  config.train.steps = 3
  return config


def _batch():
  ids = np.random.default_rng(0).integers(1, VOCAB, (1, LENGTH + 1), np.int32)
  return {
    'tokens': jnp.asarray(ids[:, :-1]),
    'targets': jnp.asarray(ids[:, 1:]),
    'segments': jnp.ones((1, LENGTH), jnp.int32),
    'positions': jnp.arange(LENGTH)[None],
  }


def _train(config):
  """Parameters before and after three steps, and the model."""
  built = parts.Parts(config)
  batch = _batch()
  ctx = state.context(batch, train=True)

  @jax.jit
  def step(params, opt_state):
    def loss(params):
      outputs, _ = built.model.apply({'params': params}, ctx)
      return losses.cross_entropy(outputs, batch)

    value, grads = jax.value_and_grad(loss)(params)
    return built.tx.step(grads, opt_state, params, value)

  first = built.new_state()
  params, opt_state = first.params, first.opt_state
  for _ in range(3):
    params, opt_state = step(params, opt_state)
  return built.model, first.params, params


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  real = jax.make_mesh
  own = functools.partial(real, devices=jax.devices()[:1])
  monkeypatch.setattr(sharding.jax, 'make_mesh', own)


def _features(model, params):
  """Of the trained text: logits, and what parts of the first block put out.

  The block is given what the model gives it. On noise an update, whose rank is
  that of the few tokens, acts as on a random vector: it moves features by the
  root of the width less, whatever the parametrisation.
  """
  ctx = state.context(_batch())
  layer = jax.tree.map(lambda a: a[0], params['layers']['blocks_0'])
  x = params['embedding'][_batch()['tokens']] * model.width**0.5
  block = model.blocks['block']
  _, kept = block.apply(
    {'params': layer}, Stream(x), ctx, capture_intermediates=True
  )
  kept = kept['intermediates']
  outputs, _ = model.apply({'params': params}, ctx)
  return {
    'logits': outputs.logits_BTV(),
    'mixer': kept['mixer']['__call__'][0][0],
    'ffn': kept['ffn']['__call__'][0],
    'router': kept['ffn']['router']['score']['__call__'][0],
  }


def _moved(width, maximal, optimizer, rate, tied):
  model, before, after = _train(_config(width, maximal, optimizer, rate, tied))
  features = jax.jit(functools.partial(_features, model))
  moved = jax.tree.map(lambda a, b: a - b, features(after), features(before))
  return {k: float(jnp.sqrt((v**2).mean())) for k, v in moved.items()}


@pytest.mark.parametrize(
  'optimizer, rate, tied, standard',
  [
    pytest.param(
      common.node('optim.AdamW', weight_decay=0.0),
      *(2e-3, True, {'logits': 2.0, 'mixer': 2.0, 'ffn': 2.0, 'router': 2.0}),
      id='adamw',
      marks=pytest.mark.slow,
    ),
    pytest.param(
      common.node('optim.Muon', weight_decay=0.0),
      *(2e-3, False, {'mixer': 1.5, 'ffn': 1.5, 'router': 2.0}),
      id='muon',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_features_move_alike_in_width(optimizer, rate, tied, standard):
  moved = {
    (width, maximal): _moved(width, maximal, optimizer, rate, tied)
    for width, maximal in ((BASE, True), (WIDTH, True), (WIDTH, False))
  }
  for name, growth in moved[BASE, True].items():
    ratio = moved[WIDTH, True][name] / growth
    assert 0.6 < ratio < 1.6, (name, ratio)
  for name, least in standard.items():
    ratio = moved[WIDTH, False][name] / moved[BASE, True][name]
    assert ratio > least, (name, ratio)


@pytest.mark.slow
def test_at_the_base_width_nothing_changes_by_a_bit():
  adam = common.node('optim.AdamW')
  one, two = (
    _train(_config(BASE, maximal, adam, 1e-2)) for maximal in (False, True)
  )
  for a, b in zip(
    jax.tree.leaves(one[1:]), jax.tree.leaves(two[1:]), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def test_initial_values_shrink_where_the_output_does_not_grow():
  adam = common.node('optim.AdamW')
  standard, maximal = (
    parts.Parts(_config(WIDTH, m, adam, 1e-2)).new_state().params
    for m in (False, True)
  )
  flat = jax.tree_util.tree_leaves_with_path(standard)
  for (path, a), b in zip(flat, jax.tree.leaves(maximal), strict=True):
    is_router = 'router' in jax.tree_util.keystr(path)
    np.testing.assert_array_equal(0.5 * a if is_router else a, b)
