"""Losses: chunked cross entropy equals the plain formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from moejax import losses
from moejax.losses import scored
from moejax.types import Outputs


def outputs(batch=2, length=8, width=16, vocab=32, scale=1.0, dtype='float32'):
  a, b = jax.random.split(jax.random.key(0))
  hidden = jax.random.normal(a, (batch, length, width))
  head = jax.random.normal(b, (width, vocab)) * scale
  return Outputs(hidden.astype(dtype), head.astype(dtype))


def plain(outputs, batch):
  """The formula with all logits in f32."""
  log_prob = jax.nn.log_softmax(outputs.logits_BTV())
  nll = -jnp.take_along_axis(log_prob, batch['targets'][..., None], -1)[..., 0]
  valid = batch['segments'] > 0
  return jnp.where(valid, nll, 0).sum() / jnp.maximum(valid.sum(), 1)


@functools.partial(jax.jit, static_argnums=0)
def both_ways(loss, outputs, batch):
  """Value and gradients of a loss."""
  return jax.value_and_grad(loss)(outputs, batch)


def both(loss, outputs, batch):
  """(value, gradients) of the loss and of the formula."""
  return [both_ways(f, outputs, batch) for f in (loss, plain)]


def close(got, want, rtol=2e-5, atol=1e-7):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype
    a, b = (np.asarray(v, np.float32) for v in (a, b))
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize('chunk_tokens', [1, 6, 7, 16, 4096])
def test_chunks_change_neither_the_loss_nor_its_gradients(chunk_tokens, small):
  loss = functools.partial(losses.cross_entropy, chunk_tokens=chunk_tokens)
  batch = small.rows(0, padding=(3, 0))
  close(*both(loss, outputs(), batch))


def test_a_vocabulary_of_one_has_loss_zero(loss, small):
  batch = small.rows(0, padding=(3, 0))
  batch['targets'][:] = 0
  value, gradient = both_ways(loss, outputs(vocab=1), batch)
  assert value == 0
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_huge_logits_stay_finite(loss, small):
  batch = small.rows(0, padding=(3, 0))
  got, want = both(loss, outputs(scale=1e4), batch)
  assert np.isfinite(got[0]) and got[0] > 1e3
  close(got, want, atol=1e-3)


def test_bf16_activations_give_a_f32_loss_and_bf16_gradients(loss, small):
  batch = small.rows(0, padding=(3, 0))
  narrow = outputs(dtype='bfloat16')
  wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)
  value, gradient = both_ways(loss, narrow, batch)
  exact, want = both_ways(plain, wide, batch)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, exact, rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(want), strict=True
  ):
    assert a.dtype == jnp.bfloat16
    # Eight bits of mantissa, twice rounded.
    assert jnp.abs(a - b).max() < 2**-7 * jnp.abs(b).max()


def test_a_batch_of_padding_has_loss_and_gradients_zero(loss, small):
  batch = small.rows(0, padding=(8,))
  value, gradient = both_ways(loss, outputs(), batch)
  assert value == 0
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_padding_may_hold_nan(loss, small):
  batch = small.rows(0, padding=(3, 0))
  clean = outputs()
  padded = (batch['segments'] == 0)[..., None]
  dirty = clean.replace(hidden_BTD=jnp.where(padded, jnp.nan, clean.hidden_BTD))
  results = (both_ways(loss, o, batch) for o in (dirty, clean))
  close(*results, rtol=0, atol=0)


def test_the_gradient_follows_what_multiplies_the_loss(small):
  batch = small.rows(0)

  @jax.jit
  def gradient(c):
    return jax.grad(lambda o: c * losses.cross_entropy(o, batch))(outputs())

  single, triple = gradient(1.0), gradient(3.0)
  close(triple, jax.tree.map(lambda a: 3 * a, single))


def _largest(jaxpr):
  """The most numbers in any value of a program, inner programs included."""
  most = 0
  for eqn in jaxpr.eqns:
    most = max([most, *(v.aval.size for v in eqn.outvars)])
    for inner in jaxprs_in_params(eqn.params):
      most = max(most, _largest(inner))
  return most


def test_no_value_of_the_program_is_as_large_as_all_logits():
  batch, length, vocab, width = 2, 512, 1024, 4
  o = outputs(batch, length, width, vocab)
  zeros = jnp.zeros((batch, length), jnp.int32)
  loss = functools.partial(losses.cross_entropy, chunk_tokens=128)

  def compute(o):
    return loss(o, {'targets': zeros, 'segments': zeros + 1})

  step = jax.jit(jax.value_and_grad(compute))
  assert _largest(step.trace(o).jaxpr.jaxpr) <= 128 * vocab
  logits_bytes = 4 * batch * length * vocab
  memory = step.lower(o).compile().memory_analysis()
  assert memory.temp_size_in_bytes < logits_bytes / 2
  wide = jax.jit(
    jax.value_and_grad(
      lambda o: plain(o, {'targets': zeros, 'segments': zeros + 1})
    )
  )
  # The measure sees all logits where they are.
  assert _largest(wide.trace(o).jaxpr.jaxpr) >= batch * length * vocab


def test_only_what_is_scored_counts(small):
  batch = small.rows(0, padding=(3, 0))
  chosen = np.random.default_rng(1).integers(0, 2, batch['tokens'].shape)
  got, gradient = both_ways(
    losses.cross_entropy, outputs(), batch | {'scored': chosen}
  )
  # The formula without: what does not count is padding to it.
  unscored = batch | {'segments': batch['segments'] * chosen}
  want = both_ways(plain, outputs(), unscored)
  close((got, gradient), want)


@pytest.mark.parametrize('chunk_tokens', [6, 4096])
def test_an_answer_is_right_if_each_of_its_tokens_is_the_likeliest(
  chunk_tokens, small
):
  batch = small.rows(2, batch=3, length=12, padding=(2, 0), document=4)
  made = outputs(batch=3, length=12)
  rng = np.random.default_rng(3)
  best = np.asarray(made.logits_BTV()).argmax(-1)
  batch['targets'] = np.where(
    rng.random(best.shape) < 0.7, best, batch['targets']
  )
  batch['scored'] = (batch['positions'] > rng.integers(0, 4)).astype(np.int32)
  right = answers = 0
  for b in range(3):
    for segment in range(1, batch['segments'][b].max() + 1):
      where = (batch['segments'][b] == segment) & (batch['scored'][b] > 0)
      if where.any():
        answers += 1
        right += (best[b, where] == batch['targets'][b, where]).all()
  assert 0 < right < answers
  got = scored.right_answers(made, batch, chunk_tokens=chunk_tokens)
  assert tuple(map(int, got)) == (right, answers)
