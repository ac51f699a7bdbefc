"""Balance terms against their formulas, and the bias update."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import balance
from moejax.routers import affinities
from moejax.types import Chosen

E, K = 8, 2


def assigned(small, seed=0, padding=(3, 0)):
  """(assignment, context, valid) of a random router."""
  batch = small.rows(seed, padding=padding)
  rng = np.random.default_rng(seed)
  valid = batch['segments'].reshape(-1) > 0
  logits = rng.normal(0, 2, (len(valid), E)).astype(np.float32)
  ids = np.argsort(-logits, -1)[:, :K].astype(np.int32)
  ids[~valid] = E
  weights = np.where(valid[:, None], 0.5, 0).astype(np.float32)
  return Chosen(ids, weights, jnp.asarray(logits)), small.context(batch), valid


def shares(ids):
  counts = np.bincount(ids.ravel(), minlength=E + 1)[:E]
  return counts / max(counts.sum(), 1)


def softmax(x):
  x = np.exp(np.asarray(x, np.float64))
  return x / x.sum(-1, keepdims=True)


def by_logits(call, term, assignment, ctx):
  return lambda logits: call(term, assignment.replace(logits_NE=logits), ctx)


def test_padding_changes_nothing(balance_term, call, small):
  assignment, ctx, valid = assigned(small)
  before = call(balance_term, assignment, ctx)
  logits = np.array(assignment.logits_NE)
  logits[~valid] = 77.0
  after = call(balance_term, assignment.replace(logits_NE=logits), ctx)
  np.testing.assert_allclose(before, after, rtol=1e-6)
  assert before.shape == () and before.dtype == jnp.float32


def test_padding_gets_no_gradient_and_the_rest_some(balance_term, call, small):
  assignment, ctx, valid = assigned(small)
  gradient = jax.grad(by_logits(call, balance_term, assignment, ctx))(
    assignment.logits_NE
  )
  assert (np.asarray(gradient)[~valid] == 0).all()
  assert (np.abs(gradient).max(-1)[valid] > 0).all()


def test_extreme_logits_and_an_empty_batch_stay_finite(
  balance_term, call, small
):
  assignment, ctx, _ = assigned(small)
  logits = jnp.where(jnp.arange(E) % 2, 1e4, -1e4) * jnp.ones((16, 1))
  for made, context in (
    (assignment.replace(logits_NE=logits), ctx),
    (assigned(small, padding=(8,))[0], assigned(small, padding=(8,))[1]),
  ):
    value, gradient = jax.value_and_grad(
      by_logits(call, balance_term, made, context)
    )(made.logits_NE)
    assert np.isfinite(value) and np.isfinite(gradient).all()


LOADS = [balance.load, balance.per_sequence, balance.GlobalBatch()]


@pytest.mark.parametrize('term', LOADS)
def test_a_uniform_router_has_balance_one(term, call, small):
  _, ctx, _ = assigned(small, padding=(0,))
  ids = np.arange(16 * K).reshape(16, K).astype(np.int32) % E
  uniform = Chosen(ids, np.full((16, K), 0.5, 'f4'), jnp.zeros((16, E)))
  np.testing.assert_allclose(call(term, uniform, ctx), 1.0, rtol=1e-6)


@pytest.mark.parametrize('term', [balance.load, balance.GlobalBatch()])
def test_load_equals_its_formula(term, call, small):
  assignment, ctx, valid = assigned(small)
  prob = softmax(assignment.logits_NE)[valid].mean(0)
  want = E * (shares(assignment.ids_NK) * prob).sum()
  np.testing.assert_allclose(call(term, assignment, ctx), want, rtol=1e-5)


def test_load_of_sigmoid_affinities_normalises_them(small):
  assignment, ctx, valid = assigned(small)
  prob = 1 / (1 + np.exp(-np.asarray(assignment.logits_NE, np.float64)))
  prob = (prob / prob.sum(-1, keepdims=True))[valid].mean(0)
  want = E * (shares(assignment.ids_NK) * prob).sum()
  got = balance.load(assignment, ctx, affinity=affinities.sigmoid)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_gradient_of_load_goes_through_probabilities_alone(small):
  assignment, ctx, valid = assigned(small)
  share = shares(assignment.ids_NK)

  def formula(logits):
    prob = jax.nn.softmax(logits)
    mean = jnp.where(valid[:, None], prob, 0).sum(0) / valid.sum()
    return E * (share * mean).sum()

  got = jax.grad(lambda x: balance.load(assignment.replace(logits_NE=x), ctx))(
    assignment.logits_NE
  )
  want = jax.grad(formula)(assignment.logits_NE)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)


def test_per_sequence_is_the_mean_over_rows_that_hold_tokens(small):
  assignment, ctx, valid = assigned(small, padding=(3, 8))
  assignment3, ctx3, valid3 = assigned(small, seed=1, padding=(1, 0))
  want = []
  for a, v in ((assignment, valid), (assignment3, valid3)):
    for row in range(2):
      own = slice(row * 8, row * 8 + 8)
      if v[own].any():
        prob = softmax(a.logits_NE[own])[v[own]].mean(0)
        want.append(E * (shares(a.ids_NK[own]) * prob).sum())
  assert len(want) == 3
  np.testing.assert_allclose(
    balance.per_sequence(assignment, ctx), want[0], rtol=1e-5
  )
  np.testing.assert_allclose(
    balance.per_sequence(assignment3, ctx3), np.mean(want[1:]), rtol=1e-5
  )


def test_global_batch_gathers_counts_over_micro_batches(small):
  term, variables = balance.GlobalBatch(), {}
  seen = []
  for seed in range(3):
    assignment, ctx, valid = assigned(small, seed)
    if not variables:
      variables = term.init(jax.random.key(0), assignment, ctx)
      assert (variables['balance']['counts'] == 0).all()
    value, variables = term.apply(
      variables, assignment, ctx, mutable=['balance']
    )
    seen.append(assignment.ids_NK)
    prob = softmax(assignment.logits_NE)[valid].mean(0)
    want = E * (shares(np.concatenate(seen)) * prob).sum()
    np.testing.assert_allclose(value, want, rtol=1e-5)
  # A call that may not write, such as one of evaluation, still works.
  term.apply(variables, assignment, ctx)
  ended = balance.end_step(variables['balance'], None)
  np.testing.assert_array_equal(ended['counts'], np.zeros(E))


def test_z_is_the_mean_square_of_the_log_partition(small):
  assignment, ctx, valid = assigned(small)
  lse = np.log(np.exp(np.asarray(assignment.logits_NE, 'f8')).sum(-1))
  np.testing.assert_allclose(
    balance.z(assignment, ctx), (lse[valid] ** 2).mean(), rtol=1e-5
  )


def test_bias_update_raises_the_underloaded_by_the_rate():
  bias = jnp.array([[0.5, 0.0, 0.0, -1.0]])
  counts = jnp.array([[4.0, 0.0, 9.0, 3.0]])  # mean 4
  got = balance.bias_update(bias, counts, rate=0.1)
  np.testing.assert_allclose(got, [[0.5, 0.1, -0.1, -0.9]], rtol=1e-6)


def test_end_step_moves_biases_beside_counts_and_clears_all_counts():
  def tree():
    return {
      'router': {'bias': jnp.zeros(2), 'counts': jnp.array([3.0, 1.0])},
      'load': {'counts': jnp.array([3.0, 1.0])},
      'other': {'bias': jnp.ones(2)},
    }

  moved = balance.end_step(tree(), balance.bias_update)
  np.testing.assert_allclose(moved['router']['bias'], [-1e-3, 1e-3])
  np.testing.assert_array_equal(moved['other']['bias'], [1, 1])
  kept = balance.end_step(tree(), None)
  np.testing.assert_array_equal(kept['router']['bias'], [0, 0])
  for ended in (moved, kept):
    for place in ('router', 'load'):
      np.testing.assert_array_equal(ended[place]['counts'], [0, 0])


def test_global_batch_is_a_module_whose_counts_are_no_parameters(small):
  assignment, ctx, _ = assigned(small)
  variables = balance.GlobalBatch().init(jax.random.key(0), assignment, ctx)
  assert isinstance(balance.GlobalBatch(), nn.Module)
  assert set(variables) == {'balance'}
