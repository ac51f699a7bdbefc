"""What is read of the routing is what the layers did."""

import functools

import jax
import numpy as np
import pytest

from configs import common
from moejax import stats
from moejax.analyze import routing
from moejax.build import build
from moejax.types import Context

pytestmark = pytest.mark.usefixtures('quick_compilation')
VOCAB, K, REPEATS = 11, 2, 3
EXPERTS = (4, 8)  # of the two blocks of a period
N = 12


@pytest.fixture(scope='module')
def case():
  blocks = {
    f'moe_{e}': common.block(common.attention(2), common.moe(e, K, 8))
    for e in EXPERTS
  }
  model = build(
    common.node(
      'model.Model',
      vocab=VOCAB,
      width=16,
      blocks=blocks,
      pattern=tuple(blocks),
      repeats=REPEATS,
    )
  )
  tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, VOCAB)
  segments = np.ones((2, 6), np.int32)
  segments[1, 4:] = 0
  positions = np.tile(np.arange(6, dtype=np.int32), (2, 1))
  ctx = Context(tokens, positions, segments)
  variables = {'params': jax.jit(model.init)(jax.random.key(0), ctx)['params']}
  ids = jax.jit(lambda v: routing.choices(model, v, ctx))(variables)
  return model, variables, ctx, ids


def test_choices_agree_with_the_counts_that_the_layers_report(case):
  model, variables, ctx, ids = case
  apply = functools.partial(model.apply, mutable=['stats'])
  _, written = jax.jit(apply)(variables, ctx)
  ((four, eight),) = stats.per_layer(written['stats'])['counts']
  assert len(ids) == len(EXPERTS) * REPEATS
  for layer, chosen in enumerate(ids):
    repeat, block = divmod(layer, 2)
    counts = (four, eight)[block][repeat]
    found = np.bincount(np.ravel(chosen), minlength=EXPERTS[block] + 1)
    np.testing.assert_array_equal(found[:-1], counts)
    assert found[-1] == 2 * K  # the two places of padding


def test_counts_by_token_equal_a_count_by_hand(case):
  _, _, ctx, ids = case
  counts = routing.counts_by_token(ids[0], ctx.tokens_BT, VOCAB, EXPERTS[0])
  expected = np.zeros((VOCAB, EXPERTS[0]))
  tokens = np.ravel(ctx.tokens_BT)
  for token, chosen in zip(tokens, np.asarray(ids[0]), strict=True):
    for expert in chosen[chosen < EXPERTS[0]]:
      expected[token, expert] += 1
  np.testing.assert_array_equal(counts, expected)


def test_transitions_equal_a_count_by_hand(case):
  first, second = (np.asarray(ids) for ids in case[3][:2])
  want = np.zeros(EXPERTS)
  for now, then in zip(first, second, strict=True):
    for e in now[now < EXPERTS[0]]:
      for f in then[then < EXPERTS[1]]:
        want[e, f] += 1
  got = routing.transitions(first, second, *EXPERTS)
  assert want.sum() == (N - 2) * K * K
  np.testing.assert_array_equal(got, want)


def test_a_model_without_routers_has_no_choices(case):
  ctx = case[2]
  block = common.block(common.attention(2), common.dense(8))
  model = build(
    common.node(
      'model.Model',
      vocab=VOCAB,
      width=16,
      blocks={'dense': block},
      pattern=('dense',),
    )
  )
  variables = {'params': jax.jit(model.init)(jax.random.key(0), ctx)['params']}
  assert routing.choices(model, variables, ctx) == []
