"""Muon against a float64 SVD, and stacks against each matrix alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moejax import optim
from moejax.optim import parameters

LR = 0.5
QUINTIC = (3.4445, -4.7750, 2.0315)


def _update(shape, names, grads, path='layers/ffn/gate', **fields):
  """Update of one parameter after each of several gradients."""
  params = {path: jnp.zeros(shape)}
  tx = optim.Chain(
    optim.Muon(weight_decay=0.0, **fields),
    schedule=lambda: optax.constant_schedule(LR),
    clip_norm=None,
  ).transformation(params, {path: names}, total_steps=9)
  state = tx.init(params)
  for grad in grads:
    update, state = jax.jit(tx.update)({path: grad}, state, params)
  return np.asarray(update[path])


def _orthogonal(matrix):
  """Five quintic steps on the singular values, in float64."""
  u, s, vt = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
  s = s / np.sqrt((s**2).sum())
  a, b, c = QUINTIC
  for _ in range(5):
    s = a * s + b * s**3 + c * s**5
  assert (s > 0.65).all() and (s < 1.25).all()
  return (u * s) @ vt


def _noise(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_expert_stack_is_orthogonalised_per_matrix():
  grad = _noise(2, 3, 16, 8)
  names = ('layers', 'expert', 'embed', 'mlp')
  update = _update(grad.shape, names, [grad])
  for layer in range(2):
    for expert in range(3):
      want = -LR * 0.2 * np.sqrt(16) * _orthogonal(grad[layer, expert])
      np.testing.assert_allclose(update[layer, expert], want, atol=2e-5)


@pytest.mark.parametrize(
  'names, rows',
  [
    (('embed', 'heads', 'kv'), (0,)),
    (('heads', 'kv', 'embed'), (0, 1)),
    (('layers', 'embed', 'heads', 'kv'), (1,)),
    (('layers', 'heads', 'kv', 'embed'), (1, 2)),
  ],
)
def test_heads_and_kv_are_one_side(names, rows):
  sizes = {'layers': 2, 'embed': 24, 'heads': 2, 'kv': 4}
  grad = _noise(*(sizes[name] for name in names))
  update = _update(grad.shape, names, [grad])
  stacks = 2 if 'layers' in names else 1
  height = int(np.prod([grad.shape[axis] for axis in rows]))
  flat = np.asarray(grad).reshape(stacks, height, -1)
  want = np.stack([-LR * 0.2 * np.sqrt(24) * _orthogonal(m) for m in flat])
  np.testing.assert_allclose(update.reshape(flat.shape), want, atol=2e-5)


def test_stack_equals_optax_on_each_matrix_over_steps():
  grads = [_noise(4, 6, 10, seed=seed) for seed in range(3)]
  update = _update((4, 6, 10), ('expert', 'mlp', 'embed'), grads)
  tx = optax.contrib.muon(LR, consistent_rms=0.2)
  step = jax.jit(tx.update)
  alone = []
  for expert in range(4):
    state = tx.init(jnp.zeros((6, 10)))
    for grad in grads:
      one, state = step(grad[expert], state, jnp.zeros((6, 10)))
    alone.append(np.asarray(one))
  np.testing.assert_allclose(update, np.stack(alone), rtol=1e-5, atol=1e-6)


def test_update_of_one_expert_ignores_the_others():
  names = ('expert', 'embed', 'mlp')
  grad = _noise(3, 12, 8)
  loud = grad.at[1:].multiply(1e4)
  np.testing.assert_array_equal(
    _update(grad.shape, names, [grad])[0],
    _update(grad.shape, names, [loud])[0],
  )


def test_update_has_the_root_mean_square_of_adamw():
  for shape in [(64, 64), (16, 256), (256, 16)]:
    update = _update(shape, ('embed', 'mlp'), [_noise(*shape)]) / LR
    assert 0.15 < np.sqrt((update**2).mean()) < 0.25


@pytest.mark.parametrize(
  'path, names, label',
  [
    ('layers/ffn/experts/gate', ('layers', 'expert', 'embed', 'mlp'), 'muon'),
    ('layers/mixer/query', ('layers', 'embed', 'heads', 'kv'), 'muon'),
    ('layers/mixer/out', ('layers', 'heads', 'kv', 'embed'), 'muon'),
    ('proj', (None, 'embed'), 'muon'),
    ('embed/table', ('vocab', 'embed'), 'adamw'),
    ('head/kernel', ('embed', 'vocab'), 'adamw'),
    ('memory/values', ('slots', 'embed'), 'adamw'),
    ('layers/norm/scale', ('layers', 'embed'), 'adamw'),
    ('layers/mixer/bias', ('layers', 'embed', 'mlp'), 'adamw'),
    ('layers/mixer/shift', ('layers', 'heads', 'kv'), 'adamw'),
    ('layers/ffn/experts/offset', ('layers', 'expert', 'mlp'), 'adamw'),
    ('layers/ffn/router/kernel', ('layers', 'embed', 'expert'), 'adamw'),
    ('layers/mixer/conv/kernel', ('layers', None, 'embed'), 'adamw'),
  ],
)
def test_only_matrices_go_to_muon(path, names, label):
  shape = tuple(range(2, 2 + len(names)))
  parameter = parameters.Parameter(path, shape, names)
  assert optim.Muon().label(parameter) == label


def test_a_stack_of_one_unnamed_expert_is_a_matrix():
  grad = _noise(2, 1, 16, 8)
  update = _update(grad.shape, ('layers', None, 'embed', 'mlp'), [grad])
  for layer in range(2):
    want = -LR * 0.2 * np.sqrt(16) * _orthogonal(grad[layer, 0])
    np.testing.assert_allclose(update[layer, 0], want, atol=2e-5)
  bias = parameters.Parameter('shared/offset', (1, 8), (None, 'mlp'))
  assert bias.is_vector


def test_router_can_be_given_to_muon():
  names = ('embed', 'expert')
  parameter = parameters.Parameter('ffn/router/kernel', (8, 4), names)
  assert optim.Muon(exclude=()).label(parameter) == 'muon'
  assert optim.Muon().label(parameter, matrix=True) == 'muon'


def test_a_vector_cannot_be_forced_to_be_a_matrix():
  params = {'norm': {'scale': jnp.zeros(4)}}
  chain = optim.Chain(optim.Muon(), groups=[('norm', {'matrix': True})])
  with pytest.raises(ValueError, match='norm/scale.*has 1 sides'):
    chain.transformation(params, total_steps=5)
