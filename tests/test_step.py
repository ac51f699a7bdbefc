"""The pure step: accumulation, skipped steps, learning, bias updates."""

import functools

import jax
import numpy as np
import pytest

from configs import common
from moejax import balance, sharding, step
from moejax.parts import Parts

pytestmark = pytest.mark.usefixtures('quick_compilation')
RATE = 0.02


def setup(small, block, losses, *accumulate):
  """(initial state, a jitted step for each number of micro-batches)."""
  config = small.config(model=small.model({'block': block}), losses=losses)
  config.optim.schedule = common.node('optim.constant', peak=1e-2)
  parts = Parts(config)
  steps = [
    jax.jit(
      step.train_step(
        parts.model,
        parts.tx,
        loss=parts.loss,
        weights=dict(losses),
        accumulate=count,
        bias_update=functools.partial(balance.bias_update, rate=RATE),
      )
    )
    for count in accumulate
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_count', lambda: 1)
    with sharding.use(parts.mesh, parts.rules):
      # On the host: the steps below run without a mesh.
      return jax.tree.map(np.asarray, parts.new_state()), *steps


@pytest.fixture(scope='module')
def sparse(small):
  """(state, step, step of 4 micro-batches), with selection biases."""
  router = common.node(
    'routers.Router',
    score=common.node('routers.scores.Linear', num_experts=4),
    k=2,
    select=common.node('routers.select.top_k'),
    weigh=common.node('routers.weigh.sigmoid'),
    affinity=common.node('routers.affinities.sigmoid'),
    selection_bias=True,
  )
  # No load loss: it is not linear in the micro-batches.
  terms = {'z': common.node('balance.z')}
  block = small.sparse(router=router, balance=terms)
  return setup(small, block, {'z': 0.01}, 1, 4)


@pytest.fixture(scope='module')
def dense(small):
  return setup(small, small.dense(), {}, 1)


def copy(state):
  return jax.tree.map(np.array, state)


def test_accumulated_micro_batches_equal_one_batch(small, sparse):
  state, *steps = sparse
  batch = small.rows(0, batch=8, padding=(0, 5, 2, 8, 1))
  (one, values), (four, others) = (taken(state, batch) for taken in steps)
  assert one.step == four.step == 1
  assert values.keys() == others.keys()
  for name in values:
    np.testing.assert_allclose(
      values[name], others[name], rtol=1e-5, err_msg=name
    )
  trees = [jax.tree.leaves((s.opt_state, s.balance)) for s in (one, four)]
  for a, b in zip(*trees, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8)
  # Adam's first step has the sign of the gradient, whose noise around 0
  # counts: so almost all parameters, to the last bits of a step of 1e-2.
  for a, b in zip(
    *(jax.tree.leaves(s.params) for s in (one, four)), strict=True
  ):
    assert np.mean(np.abs(a - b) > 1e-5) < 0.01


def test_a_step_that_is_not_finite_changes_nothing_but_its_counts(
  small, sparse
):
  start, taken, _ = sparse
  batch = small.rows(0)
  state, _ = taken(start, batch)
  assert np.abs(router_of(state.balance)['bias']).max() > 0
  poisoned = copy(state)
  poisoned.params['final_norm']['scale'][0] = np.nan
  after, metrics = taken(poisoned, batch)
  assert metrics['skipped_steps'] == metrics['skipped_in_a_row'] == 1
  assert after.step == state.step + 1
  same = [poisoned.params, poisoned.balance, poisoned.opt_state.inner]
  kept = [after.params, after.balance, after.opt_state.inner]
  for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(kept), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
  _, metrics = taken(after.replace(params=state.params), batch)
  assert metrics['skipped_steps'] == 1 and metrics['skipped_in_a_row'] == 0


@pytest.mark.parametrize('kind', ['dense', 'sparse'])
def test_a_model_overfits_one_batch_to_a_loss_below_a_hundredth(
  small, kind, request
):
  state, taken, *_ = request.getfixturevalue(kind)
  batch, losses = small.rows(0), []
  for _ in range(200):
    state, metrics = taken(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[0] > 2
  assert losses[-1] < 0.01


def router_of(tree):
  return tree['layers']['blocks_0']['ffn']['router']


def test_the_bias_update_balances_a_skewed_router(small, sparse):
  start, taken, _ = sparse
  state, batch = copy(start), small.rows(0, batch=8)
  router_of(state.params)['score']['kernel'][:] *= 0.3
  router_of(state.balance)['bias'][:] = [0.5, 0.5, 0.0, 0.0]
  params, loads = state.params, []
  for _ in range(60):
    # The weights stay: only the biases move.
    state, metrics = taken(state.replace(params=params), batch)
    loads.append(float(metrics['moe/load_max_over_mean'][0]))
  assert loads[0] == 2.0  # all tokens on two of four
  assert max(loads[-5:]) < 1.3
  assert (router_of(state.balance)['counts'] == 0).all()
