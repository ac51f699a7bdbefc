"""What is read of the routing is what the layers did."""

import jax
import numpy as np
import pytest

from configs import common
from moejax.analyze import routing
from moejax.build import build
from moejax.types import Context

VOCAB, EXPERTS, K, LAYERS = 11, 4, 2, 3


@pytest.fixture(scope='module')
def case():
  ffn = common.moe(EXPERTS, K, 8)
  model = build(
    common.node(
      'model.Model',
      vocab=VOCAB,
      width=16,
      blocks={'block': common.block(common.attention(2), ffn)},
      pattern=('block',),
      repeats=LAYERS,
    )
  )
  tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, VOCAB)
  segments = np.ones((2, 6), np.int32)
  segments[1, 4:] = 0
  positions = np.tile(np.arange(6, dtype=np.int32), (2, 1))
  ctx = Context(tokens, positions, segments)
  variables = {'params': model.init(jax.random.key(0), ctx)['params']}
  return model, variables, ctx


def test_choices_agree_with_the_counts_that_the_layers_report(case):
  model, variables, ctx = case
  (ids,) = routing.choices(model, variables, ctx)
  assert ids.shape == (LAYERS, 12, K)
  _, written = model.apply(variables, ctx, mutable=['stats'])
  (counts,) = jax.tree.leaves(
    jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf if 'counts' in str(path) else None,
      written['stats'],
    )
  )
  for layer in range(LAYERS):
    found = np.bincount(np.ravel(ids[layer]), minlength=EXPERTS + 1)
    np.testing.assert_array_equal(found[:EXPERTS], counts[layer])
    assert found[EXPERTS] == 2 * K  # the two places of padding


def test_counts_by_token_equal_a_count_by_hand(case):
  model, variables, ctx = case
  (ids,) = routing.choices(model, variables, ctx)
  counts = routing.counts_by_token(ids, ctx.tokens_BT, VOCAB, EXPERTS)
  expected = np.zeros((LAYERS, VOCAB, EXPERTS))
  tokens = np.ravel(ctx.tokens_BT)
  for layer, token, slot in np.ndindex(LAYERS, 12, K):
    expert = int(ids[layer, token, slot])
    if expert < EXPERTS:
      expected[layer, tokens[token], expert] += 1
  np.testing.assert_array_equal(counts, expected)


def test_reading_leaves_the_outputs_as_they_are(case):
  model, variables, ctx = case
  before = model.apply(variables, ctx)[0].hidden_BTD
  routing.choices(model, variables, ctx)
  np.testing.assert_array_equal(model.apply(variables, ctx)[0].hidden_BTD, before)
