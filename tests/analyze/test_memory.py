"""The recall of a memory's filter among all slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from configs.papers.memory import ring
from moejax.analyze import memory
from moejax.build import build
from moejax.types import Context

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture
def draw():
  return np.random.default_rng(0)


def test_recall_is_the_share_that_sorting_all_slots_finds(draw):
  tokens, heads, keys, k = 21, 2, 9, 5  # no multiple of the tokens at a time
  left, right = draw.normal(size=(2, tokens, heads, keys, 2))
  core = draw.normal(size=(heads, 2, 2))
  ids = np.argsort(draw.random((tokens, heads, keys**2)), -1)[..., :k]
  grid = np.einsum('nhar,hrq,nhbq->nhab', left, core, right)
  best = np.argsort(-grid.reshape(ids.shape[:2] + (-1,)), -1)[..., :k]
  want = (ids[..., None] == best[..., None, :]).any(-1).mean(-1)
  args = (jnp.asarray(a, jnp.float32) for a in (left, right, core))
  found = jax.jit(memory.recall)(*args, jnp.asarray(ids, jnp.int32))
  np.testing.assert_allclose(found, want, atol=1e-6)
  assert 0 < want.mean() < 1


def test_each_memory_of_a_model_tells_its_own(draw):
  node, _ = ring.memory(8, 4, 8, 4, 2, 1)
  block = common.block(common.attention(2), common.beside(node, 8))
  model = build(common.uniform(block, 2, vocab=11, width=16))
  tokens = jnp.asarray(draw.integers(0, 11, (2, 40)), jnp.int32)
  segments = np.ones((2, 40), np.int32)
  segments[1, 30:] = 0
  positions = jnp.tile(jnp.arange(40, dtype=jnp.int32), (2, 1))
  ctx = Context(tokens, positions, jnp.asarray(segments))
  variables = jax.jit(model.init)(jax.random.key(0), ctx)
  variables = {n: variables[n] for n in ('params', 'balance')}
  read = jax.jit(lambda v, c: memory.filter_recall(model, v, c))
  first, second = read(variables, ctx)
  assert 0 < first < 1 and 0 < second < 1 and first != second
  # Each side's S best of S are all slots, which nothing is lost of.
  whole = build(
    common.uniform(
      common.block(
        common.attention(2), common.beside(ring.memory(4, 4, 8, 4, 2, 1)[0], 8)
      ),
      2,
      vocab=11,
      width=16,
    )
  )
  variables = jax.jit(whole.init)(jax.random.key(0), ctx)
  found = memory.filter_recall(whole, variables, ctx)
  np.testing.assert_array_equal(found, 1)


def test_a_model_without_memories_tells_nothing(small):
  model = build(small.model({'dense': small.dense()}))
  ctx = small.context(small.rows(0))
  variables = jax.jit(model.init)(jax.random.key(0), ctx)
  assert memory.filter_recall(model, variables, ctx) == []
