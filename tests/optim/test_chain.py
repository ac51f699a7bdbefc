"""The chain against AdamW written out in float64, groups and state names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import optim
from moejax.optim import parameters

NAMES = {
  'embed': {'table': ('vocab', 'embed')},
  'layers': {
    'ffn': {
      'gate': ('layers', 'expert', 'embed', 'mlp'),
      'router': {'kernel': ('layers', 'embed', 'expert')},
    },
    'norm': {'scale': ('layers', 'embed')},
  },
}
SIZES = {'vocab': 7, 'embed': 6, 'layers': 2, 'expert': 3, 'mlp': 5}
_AUTO = (jax.sharding.AxisType.Auto,) * 2
COSINE = functools.partial(optim.cosine, peak=0.1, warmup_steps=2)


def _tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda names: jnp.asarray(
      scale * rng.normal(size=[SIZES[name] for name in names]), jnp.float32
    ),
    NAMES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


def _flat(tree):
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    parameters.slashed(path): np.asarray(leaf, np.float64)
    for path, leaf in flat
  }


def _train(chain, params, steps=4, scale=1.0):
  tx = chain.transformation(params, NAMES, total_steps=steps)
  state = tx.init(params)

  @jax.jit
  def step(params, state, grads):
    return tx.step(grads, state, params)

  for seed in range(1, steps + 1):
    params, state = step(params, state, _tree(seed, scale))
  return params, state


def _oracle(params, decays, scales, steps=4, scale=1.0, clip=1.0):
  """AdamW of the defaults, per leaf, in numpy float64."""
  params = _flat(params)
  m = {path: 0.0 for path in params}
  v = {path: 0.0 for path in params}
  lr = optim.cosine(0.1, steps, 2)
  for t in range(steps):
    grads = _flat(_tree(t + 1, scale))
    moving = [grads[path] for path in params if scales[path]]
    norm = np.sqrt(sum((g**2).sum() for g in moving))
    for path, p in params.items():
      g = grads[path] * min(1.0, clip / norm)
      m[path] = 0.9 * m[path] + 0.1 * g
      v[path] = 0.95 * v[path] + 0.05 * g * g
      m_hat, v_hat = (
        m[path] / (1 - 0.9 ** (t + 1)),
        v[path] / (1 - 0.95 ** (t + 1)),
      )
      direction = m_hat / (np.sqrt(v_hat) + 1e-8) + decays[path] * p
      params[path] = p - float(lr(t)) * scales[path] * direction
  return params


def _check(chain, decays, scales, scale=1.0):
  start = _tree(0)
  got, _ = _train(chain, start, scale=scale)
  want = _oracle(start, decays, scales, scale=scale)
  for path, value in _flat(got).items():
    np.testing.assert_allclose(value, want[path], rtol=2e-5, atol=2e-6)


PATHS = list(_flat(_tree(0)))


@pytest.mark.parametrize('scale', [1.0, 1e-3])  # Clipped, and not.
def test_default_chain_is_adamw_without_decay_of_vectors(scale):
  decays = {path: 0.1 for path in PATHS}
  decays['layers/norm/scale'] = 0.0
  scales = dict.fromkeys(PATHS, 1.0)
  _check(optim.Chain(schedule=COSINE), decays, scales, scale)


def test_groups_set_scale_decay_and_frozen_and_the_first_match_wins():
  groups = [
    ('router', {'weight_decay': 0.0, 'lr_scale': 0.5}),
    ('^embed/', optim.Group(frozen=True)),
    ('norm/scale$', {'weight_decay': 0.3}),
    ('layers', {'lr_scale': 2.0}),
  ]
  decays = dict(zip(PATHS, [0.0, 0.1, 0.0, 0.3], strict=True))
  scales = dict(zip(PATHS, [0.0, 2.0, 0.5, 1.0], strict=True))
  _check(optim.Chain(schedule=COSINE, groups=groups), decays, scales)


@pytest.mark.parametrize('optimizer', [optim.AdamW(), optim.Muon()])
def test_frozen_leaf_keeps_its_bits_and_has_no_state(optimizer):
  start = _tree(0)
  chain = optim.Chain(
    optimizer, COSINE, groups=[('gate', {'frozen': True, 'lr_scale': 3.0})]
  )
  params, state = _train(chain, start)
  gate = lambda tree: np.asarray(tree['layers']['ffn']['gate'])  # noqa: E731
  assert gate(params).tobytes() == gate(start).tobytes()
  shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
  assert gate(start).shape not in shapes


def test_frozen_gradients_do_not_clip_the_others():
  groups = [('embed', {'frozen': True})]
  decays = {path: 0.1 for path in PATHS} | {'layers/norm/scale': 0.0}
  scales = {path: float('embed' not in path) for path in PATHS}
  _check(optim.Chain(schedule=COSINE, groups=groups), decays, scales, 0.05)


@pytest.mark.parametrize(
  'groups, message',
  [
    ([('typo', {})], "'typo' matches no parameter; there are 4.*embed/table"),
    ([('layers', {}), ('norm', {})], "'norm' picks nothing: earlier"),
    ([('norm', {'lr': 1})], "sets 'lr'.*lr_scale, weight_decay"),
    ([('norm', {'lr_scale': -1.0})], 'lr_scale=-1.0'),
    ([('norm', {'weight_decay': float('nan')})], 'weight_decay=nan'),
    ([('(', {})], 'no regular expression'),
    ([('norm', 3)], 'give a mapping'),
    ([('gate', {'matrix': True})], 'use optim.Muon'),
  ],
)
def test_bad_groups_are_refused_with_the_fix(groups, message):
  with pytest.raises(ValueError, match=message):
    optim.Chain(groups=groups).transformation(_tree(0), NAMES, total_steps=4)


def test_learning_rate_takes_the_run_length_unless_it_has_its_own():
  run = optim.Chain(schedule=COSINE).learning_rate(50)
  own = functools.partial(COSINE, total_steps=100)
  long = optim.Chain(schedule=own).learning_rate(50)
  assert float(run(50)) == pytest.approx(0.01)
  assert float(long(50)) == pytest.approx(float(optim.cosine(0.1, 100, 2)(50)))


@pytest.mark.parametrize('optimizer', [optim.AdamW(), optim.Muon()])
def test_state_names_mirror_parameters_and_replicate_the_rest(optimizer):
  params = jax.eval_shape(lambda: _tree(0))
  tx = optim.Chain(optimizer).transformation(params, NAMES, total_steps=4)
  state = jax.eval_shape(tx.init, params)
  named = optim.state_names(state, params, NAMES)
  pairs = zip(
    jax.tree_util.tree_flatten_with_path(state)[0],
    jax.tree.leaves(named, is_leaf=_is_names),
    strict=True,
  )
  wanted = {
    parameters.slashed(path): names
    for path, names in jax.tree_util.tree_flatten_with_path(
      NAMES, is_leaf=_is_names
    )[0]
  }
  mirrored = 0
  for (path, leaf), names in pairs:
    assert len(names) == len(leaf.shape)
    owner = [p for p in wanted if parameters.slashed(path).endswith('/' + p)]
    if owner:
      assert names == wanted[owner[0]]
      mirrored += 1
    else:
      assert set(names) <= {None}
  assert mirrored == (8 if isinstance(optimizer, optim.AdamW) else 7)


@pytest.mark.parametrize('optimizer', [optim.AdamW(), optim.Muon()])
def test_sharded_training_equals_one_device(optimizer):
  mesh = jax.make_mesh((2, 3), ('data', 'expert'), axis_types=_AUTO)
  rules = {'embed': 'data', 'expert': 'expert'}

  def sharding(leaf, names):
    del leaf
    return jax.NamedSharding(mesh, jax.P(*[rules.get(name) for name in names]))

  chain = optim.Chain(optimizer, COSINE)
  alone, _ = _train(chain, _tree(0))
  params = jax.eval_shape(lambda: _tree(0))
  tx = chain.transformation(params, NAMES, total_steps=4)
  shape = jax.eval_shape(tx.init, params)
  homes = jax.tree.map(sharding, params, NAMES)
  state_homes = jax.tree.map(
    sharding, shape, optim.state_names(shape, params, NAMES)
  )
  spread = jax.device_put(_tree(0), homes)
  state = jax.jit(tx.init, out_shardings=state_homes)(spread)
  step = jax.jit(
    lambda params, state, grads: tx.step(grads, state, params),
    out_shardings=(homes, state_homes),
    donate_argnums=(0, 1),
  )
  for seed in range(1, 5):
    spread, state = step(spread, state, jax.device_put(_tree(seed), homes))
  for path, value in _flat(spread).items():
    np.testing.assert_allclose(value, _flat(alone)[path], atol=2e-5)


def _is_names(node):
  return (
    isinstance(node, tuple)
    and not hasattr(node, '_fields')
    and all(part is None or isinstance(part, str) for part in node)
  )


def test_names_that_do_not_fit_are_refused_by_path():
  params = {'a': jnp.zeros((2, 3)), 'b': jnp.zeros(2)}
  with pytest.raises(ValueError, match=r'a has shape \(2, 3\)'):
    parameters.collect(params, {'a': ('embed',), 'b': ('embed',)})
  with pytest.raises(ValueError, match='differ at b'):
    parameters.collect(params, {'a': ('embed', 'mlp')})


@pytest.mark.parametrize(
  'make, field',
  [
    (lambda: optim.AdamW(b2=1.0), 'b2=1.0'),
    (lambda: optim.AdamW(weight_decay=-0.1), 'weight_decay=-0.1'),
    (lambda: optim.Muon(beta=float('nan')), 'beta=nan'),
    (lambda: optim.Muon(ns_steps=0), 'ns_steps=0'),
    (lambda: optim.Chain(clip_norm=0.0), 'clip_norm=0.0'),
  ],
)
def test_impossible_fields_are_refused_by_name(make, field):
  with pytest.raises(ValueError, match=field):
    make()


def test_a_scale_of_the_rate_falls_in_equal_strides_and_then_stays():
  params = {'a': jnp.ones(3), 'b': jnp.ones(3)}
  chain = optim.Chain(
    optim.AdamW(b1=0.0, b2=0.0, weight_decay=0.0),
    schedule=functools.partial(optim.constant, peak=0.1),
    groups=(('a', dict(lr_scale=4.0, lr_scale_end=1.0, lr_scale_frac=0.5)),),
  )
  tx = chain.transformation(
    params, total_steps=8, lr_scale=lambda parameter, rule: 0.5
  )
  state, strides = tx.init(params), []
  for _ in range(8):
    new, state = jax.jit(tx.step)(params, state, params)
    strides.append([float((params[k] - new[k])[0]) for k in 'ab'])
  factors = [4, 3.25, 2.5, 1.75, 1, 1, 1, 1]
  want = [[0.05 * factor, 0.05] for factor in factors]
  np.testing.assert_allclose(strides, want, rtol=1e-4)


@pytest.mark.parametrize(
  'settings,message',
  [
    (dict(lr_scale_end=-1.0), 'lr_scale_end=-1.0 is no scale'),
    (dict(lr_scale_frac=0.0), 'lr_scale_frac=0.0 is no part'),
  ],
)
def test_scales_that_cannot_be_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    optim.Group(**settings)
