"""A step that is not finite changes nothing but the counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moejax import optim

PARAMS = {
  'w': jnp.asarray([[1.0, -0.0], [0.0, -2.0]]),
  'b': jnp.asarray([-0.0, 0.5]),
}
GRADS = {'w': jnp.ones((2, 2)), 'b': jnp.asarray([0.5, -0.5])}


def _chain(optimizer):
  names = {'w': ('embed', 'mlp'), 'b': ('mlp',)}
  chain = optim.Chain(optimizer, clip_norm=0.5)
  return chain.transformation(PARAMS, names, total_steps=10)


def _stepper(tx, way='step'):
  @jax.jit
  def step(params, state, grads, loss):
    if way == 'step':
      return tx.step(grads, state, params, loss)
    updates, state = tx.update(grads, state, params, loss=loss)
    return optax.apply_updates(params, updates), state

  return step


def _bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize('optimizer', [optim.AdamW(), optim.Muon()])
@pytest.mark.parametrize('bad', ['nan gradient', 'inf gradient', 'nan loss'])
@pytest.mark.parametrize('way', ['step', 'update'])
def test_bad_step_leaves_every_bit_and_the_next_is_taken(optimizer, bad, way):
  tx = _chain(optimizer)
  step = _stepper(tx, way)
  params, state = step(PARAMS, tx.init(PARAMS), GRADS, 1.0)
  grads, loss = dict(GRADS), 1.0
  if bad == 'nan loss':
    loss = jnp.nan
  else:
    value = jnp.nan if bad == 'nan gradient' else jnp.inf
    grads['b'] = grads['b'].at[0].set(value)
  held, held_state = step(params, state, grads, loss)
  assert _bits(held) == _bits(params)
  assert _bits(held_state.inner) == _bits(state.inner)
  assert (int(held_state.skipped), int(held_state.consecutive)) == (1, 1)
  got = step(held, held_state, GRADS, 1.0)
  want = step(params, state, GRADS, 1.0)
  assert _bits(got[0]) == _bits(want[0]) != _bits(params)
  assert _bits(got[1].inner) == _bits(want[1].inner)
  assert (int(got[1].skipped), int(got[1].consecutive)) == (1, 0)


@pytest.mark.parametrize('way', ['step', 'update'])
def test_negative_zeros_survive_a_skipped_first_step(way):
  tx = _chain(optim.AdamW())
  bad = jax.tree.map(lambda leaf: leaf * jnp.nan, GRADS)
  held, _ = _stepper(tx, way)(PARAMS, tx.init(PARAMS), bad, 1.0)
  assert _bits(held) == _bits(PARAMS)


def test_consecutive_skips_are_counted_beyond_any_limit():
  tx = _chain(optim.AdamW())
  step = _stepper(tx)
  params, state = PARAMS, tx.init(PARAMS)
  bad = jax.tree.map(lambda leaf: leaf * jnp.nan, GRADS)
  for count in range(1, 8):
    params, state = step(params, state, bad, 1.0)
    assert int(state.consecutive) == int(state.skipped) == count
  assert _bits(params) == _bits(PARAMS)


def test_adamw_step_updates_in_place():
  params = {f'w{i}': jnp.zeros((256, 512)) for i in range(3)}
  tx = optim.Chain(clip_norm=0.5).transformation(params, total_steps=10)
  step = jax.jit(
    lambda params, state, grads: tx.step(grads, state, params),
    donate_argnums=(0, 1),
  )
  state = jax.eval_shape(tx.init, params)
  memory = step.lower(params, state, params).compile().memory_analysis()
  # One clipped gradient or one copied moment would be 524,288 bytes.
  assert memory.temp_size_in_bytes < 50_000


def test_global_norm_of_bfloat16_is_summed_in_float32():
  grads = [jnp.full(2**16, 0.5, jnp.bfloat16), jnp.full(3, 2.0, jnp.bfloat16)]
  want = np.sqrt(0.25 * 2**16 + 12.0)
  assert float(optim.global_norm(grads)) == pytest.approx(want, rel=1e-6)
