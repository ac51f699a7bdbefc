"""Decoding: equal to full forwards, for prompts of any lengths."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import sharding, state
from moejax.build import build
from moejax.infer import decode, pad_prompts, sampler
from moejax.types import Context

PROMPTS = ([3, 9, 4, 1], [7], [5, 2])
NEW = 6


@pytest.fixture(scope='module')
def trained(small):
  """(model, variables) with random weights."""
  blocks = {'sparse': small.sparse(), 'dense': small.dense(window=3)}
  model = build(small.model(blocks, pattern=('sparse', 'dense')))
  rng = np.random.default_rng(0)
  shapes = state.abstract_variables(model)[0]
  return model, jax.tree.map(
    lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes
  )


def decoder(model, end):

  @jax.jit
  def run(variables, prompts):
    return decode(
      model,
      variables,
      prompts,
      max_tokens=NEW,
      sample=sampler.greedy,
      key=jax.random.key(0),
      end=end,
    )

  return run


@pytest.fixture(scope='module')
def together(trained):
  model, variables = trained
  return decoder(model, None)(variables, pad_prompts(PROMPTS))


def test_greedy_decoding_is_a_loop_of_argmax_over_full_forwards(
  trained, together
):
  model, variables = trained
  length = 10

  @jax.jit
  def logits(variables, tokens, used):
    place = jnp.arange(length)[None]
    segments = (place < used).astype(jnp.int32)
    outputs, _ = model.apply(variables, Context(tokens, place, segments))
    return outputs.logits_BTV()[0, used - 1]

  for prompt, got in zip(PROMPTS, together[0], strict=True):
    ids = list(prompt)
    for _ in range(NEW):
      padded = np.zeros((1, length), np.int32)
      padded[0, : len(ids)] = ids
      ids.append(int(jnp.argmax(logits(variables, padded, len(ids)))))
    assert ids[len(prompt) :] == got.tolist()
  assert len({tuple(row) for row in together[0].tolist()}) == len(PROMPTS)


def test_prompts_of_different_lengths_equal_each_alone(trained, together):
  model, variables = trained
  run = decoder(model, None)
  alone, _ = run(variables, pad_prompts([PROMPTS[2]]))
  np.testing.assert_array_equal(alone[0], together[0][2])


@pytest.mark.slow
def test_prompts_that_do_not_divide_the_devices_are_decoded_on_all(
  trained, together
):
  model, variables = trained
  mesh = sharding.make_mesh({'data': 8})
  with sharding.use(mesh, sharding.RULES):
    tokens, _ = decoder(model, None)(variables, pad_prompts(PROMPTS))
  np.testing.assert_array_equal(tokens, together[0])


def test_a_sequence_ends_at_the_end_id_and_the_others_go_on(trained, together):
  model, variables = trained
  free = np.asarray(together[0])
  end = int(free[0, 2])
  tokens, lengths = decoder(model, end)(variables, pad_prompts(PROMPTS))
  for row, length, want in zip(tokens, lengths, free.tolist(), strict=True):
    stop = want.index(end) if end in want else NEW
    assert length == stop
    assert row.tolist() == want[:stop] + [end] * (NEW - stop)
  assert lengths[0] <= 2


def test_prompts_are_padded_on_the_left():
  prompts = pad_prompts(PROMPTS)
  np.testing.assert_array_equal(prompts.tokens_BT[1], [0, 0, 0, 7])
  np.testing.assert_array_equal(prompts.positions_BT[2], [0, 0, 0, 1])
  np.testing.assert_array_equal(prompts.segments_BT[2], [0, 0, 1, 1])
  for bad in ([], [[1], []]):
    with pytest.raises(ValueError, match='every prompt needs at least one'):
      pad_prompts(bad)


class Peeking(nn.Module):
  """A router that chooses with a view of all tokens."""

  inner: nn.Module
  causal = False

  def __call__(self, x_ND, ctx):
    return self.inner(x_ND, ctx)


class Wrapping(nn.Module):
  """A router around another one."""

  inner: nn.Module

  def __call__(self, x_ND, ctx):
    return self.inner(x_ND, ctx)


@pytest.mark.parametrize('wrap', [lambda r: r, Wrapping], ids=['bare', 'deep'])
def test_a_router_that_sees_later_tokens_is_refused_by_name(small, wrap):
  model = build(small.model())
  block = model.blocks['sparse']
  ffn = block.ffn.clone(router=wrap(Peeking(block.ffn.router)))
  model = model.clone(blocks={'sparse': block.clone(ffn=ffn)})
  with pytest.raises(ValueError, match='layers/blocks_0: Peeking sees later'):
    decode(
      model,
      {},
      pad_prompts(PROMPTS),
      max_tokens=1,
      sample=sampler.greedy,
      key=jax.random.key(0),
    )


# Samplers.


LOGITS = jnp.log(jnp.array([[0.1, 0.5, 0.05, 0.3, 0.05]]))


def draws(count=400, **fields):
  sample = functools.partial(sampler.temperature, **fields)
  keys = jax.random.split(jax.random.key(0), count)
  return np.asarray(jax.vmap(lambda key: sample(LOGITS, key)[0])(keys))


def test_samples_follow_the_probabilities():
  share = np.bincount(draws(4000), minlength=5) / 4000
  np.testing.assert_allclose(share, np.exp(LOGITS[0]), atol=0.03)


@pytest.mark.parametrize(
  'fields,kept',
  [
    (dict(top_k=1), {1}),
    (dict(top_k=2), {1, 3}),
    (dict(top_p=0.4), {1}),
    (dict(top_p=0.55), {1, 3}),
    (dict(top_p=0.85), {0, 1, 3}),
    (dict(top_p=1.0), {0, 1, 2, 3, 4}),
    (dict(top_k=3, top_p=0.5), {1}),
    (dict(temperature=0.01), {1}),
  ],
)
def test_cuts_keep_the_likely_tokens_and_only_those(fields, kept):
  assert set(draws(**fields)) == kept


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(temperature=0.0), 'temperature=0.0 must be above 0'),
    (dict(top_k=0), 'top_k=0 must be between 1 and the vocabulary of 5'),
    (dict(top_k=6), 'top_k=6 must be'),
    (dict(top_p=0.0), 'top_p=0.0 must be above 0'),
  ],
)
def test_samplers_refuse_settings_outside_their_range(fields, message):
  with pytest.raises(ValueError, match=message):
    sampler.temperature(LOGITS, jax.random.key(0), **fields)
