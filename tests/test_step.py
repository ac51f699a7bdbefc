"""The pure step: accumulation, skipped steps, learning, bias updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from moejax import balance, sharding, step
from moejax.parts import Parts


def setup(small, block, *, accumulate=1, peak=1e-2, losses=None, **fields):
  """(parts, state, jitted step, gradient) of a small model."""
  config = small.config(
    model=small.model({'block': block}),
    losses=losses if losses is not None else {'load': 0.01, 'z': 0.001},
  )
  config.optim = common.node(
    'optim.Chain',
    optimizer=common.node('optim.AdamW'),
    schedule=common.node('optim.constant', peak=peak),
    clip_norm=1.0,
  )
  parts = Parts(config)
  taken = jax.jit(
    step.train_step(
      parts.model,
      parts.tx,
      loss=parts.loss,
      weights=dict(config.losses),
      accumulate=accumulate,
      **fields,
    )
  )
  return parts, taken


@pytest.fixture
def new(one_device):
  """Makes a state on one device."""

  def make(parts):
    with sharding.use(parts.mesh, parts.rules):
      return jax.tree.map(jnp.asarray, parts.new_state())

  return make


def only_z():
  return common.block(
    common.attention(2, 1),
    common.moe(4, 2, 8, balance={'z': common.node('balance.z')}),
  )


def test_accumulated_micro_batches_equal_one_batch(small, new):
  batch = small.rows(0, batch=8, padding=(0, 5, 2, 8, 1))
  states, values = [], []
  for accumulate in (1, 4):
    parts, taken = setup(
      small, only_z(), accumulate=accumulate, losses={'z': 0.1}
    )
    state, metrics = taken(new(parts), batch)
    states.append(state)
    values.append(metrics)
  assert states[0].step == states[1].step == 1
  for name in values[0]:
    np.testing.assert_allclose(
      *(v[name] for v in values), rtol=1e-5, err_msg=name
    )
  moments = [jax.tree.leaves(s.opt_state) for s in states]
  for a, b in zip(*moments, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)
  # Adam's first step has the sign of the gradient: noise around 0 counts.
  for a, b in zip(*(jax.tree.leaves(s.params) for s in states), strict=True):
    assert np.mean(np.abs(a - b) > 1e-4) < 0.01


def test_a_step_that_is_not_finite_changes_nothing_but_its_counts(small, new):
  block = common.block(
    common.attention(2, 1),
    common.moe(4, 2, 8, router=biased_router(4)),
  )
  parts, taken = setup(
    small, block, bias_update=functools.partial(balance.bias_update, rate=0.1)
  )
  batch = small.rows(0)
  state, _ = taken(new(parts), batch)
  assert np.abs(bias_of(state)).max() > 0
  poisoned = jax.tree.map(jnp.array, state)
  poisoned.params['final_norm']['scale'] = (
    poisoned.params['final_norm']['scale'].at[0].set(jnp.nan)
  )
  after, metrics = taken(poisoned, batch)
  assert metrics['skipped_steps'] == metrics['skipped_in_a_row'] == 1
  assert after.step == state.step + 1
  same = [poisoned.params, poisoned.balance, poisoned.opt_state.inner]
  kept = [after.params, after.balance, after.opt_state.inner]
  for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(kept), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
  healthy = after.replace(params=state.params)
  _, metrics = taken(healthy, batch)
  assert metrics['skipped_steps'] == 1 and metrics['skipped_in_a_row'] == 0


@pytest.mark.parametrize('kind', ['dense', 'sparse'])
def test_a_model_overfits_one_batch_to_a_loss_below_a_hundredth(
  small, new, kind
):
  parts, taken = setup(
    small,
    getattr(small, kind)(),
    losses={} if kind == 'dense' else {'load': 0.01, 'z': 0.001},
  )
  state, batch = new(parts), small.rows(0)
  first = None
  for _ in range(200):
    state, metrics = taken(state, batch)
    first = first or metrics['loss']
  assert first > 2
  assert metrics['loss'] < 0.01


def biased_router(num_experts):
  return common.node(
    'routers.Router',
    score=common.node('routers.scores.Linear', num_experts=num_experts),
    k=2,
    select=common.node('routers.select.top_k'),
    weigh=common.node('routers.weigh.sigmoid'),
    affinity=common.node('routers.affinities.sigmoid'),
    selection_bias=True,
  )


def bias_of(state):
  leaves = jax.tree_util.tree_leaves_with_path(state.balance)
  found = [leaf for path, leaf in leaves if 'bias' in str(path[-1])]
  assert len(found) == 1
  return np.asarray(found[0])[0]


def test_the_bias_update_balances_a_skewed_router(small, new):
  block = common.block(
    common.attention(2, 1),
    common.moe(4, 2, 8, router=biased_router(4), balance={}),
  )
  parts, taken = setup(
    small,
    block,
    losses={},
    peak=1e-8,  # the weights stay: only the biases move
    bias_update=functools.partial(balance.bias_update, rate=0.02),
  )
  state, batch = new(parts), small.rows(0, batch=4, length=16)
  score = state.params['layers']['blocks_0']['ffn']['router']['score']
  kernel = np.array(score['kernel'])
  score['kernel'] = jnp.asarray(0.3 * kernel)
  skew = {'bias': jnp.asarray([[0.5, 0.5, 0.0, 0.0]])}
  state.balance['layers']['blocks_0']['ffn']['router'].update(skew)
  loads = []
  for _ in range(60):
    state, metrics = taken(state, batch)
    loads.append(float(metrics['moe/load_max_over_mean'][0]))
  assert loads[0] == 2.0  # all tokens on two of four
  assert max(loads[-5:]) < 1.3
  counts = jax.tree_util.tree_leaves_with_path(state.balance)
  assert all((c == 0).all() for p, c in counts if 'counts' in str(p[-1]))
