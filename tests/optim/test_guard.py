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


def _stepper(tx):
  @jax.jit
  def step(params, state, grads, loss):
    updates, state = tx.update(grads, state, params, loss=loss)
    return optax.apply_updates(params, updates), state

  return step


def _bits(tree):
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize('optimizer', [optim.AdamW(), optim.Muon()])
@pytest.mark.parametrize('bad', ['nan gradient', 'inf gradient', 'nan loss'])
def test_bad_step_leaves_every_bit_and_the_next_is_taken(optimizer, bad):
  tx = _chain(optimizer)
  step = _stepper(tx)
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


def test_negative_zeros_survive_a_skipped_first_step():
  tx = _chain(optim.AdamW())
  bad = jax.tree.map(lambda leaf: leaf * jnp.nan, GRADS)
  held, _ = _stepper(tx)(PARAMS, tx.init(PARAMS), bad, 1.0)
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
