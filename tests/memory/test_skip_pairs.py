"""Memories whose results join the stream after a later block."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import accounting, model
from moejax.blocks import PreNorm, Skip
from moejax.build import build
from moejax.experts import Glu
from moejax.memory import ProductKey
from moejax.memory.tables import Table
from moejax.mixers import Attention
from moejax.moe import Dense
from moejax.nn import RmsNorm
from moejax.types import Context, Stream

pytestmark = pytest.mark.usefixtures('quick_compilation')
D, T = 16, 6
MEMORY = ProductKey(keys=4, k=2, heads=1, head_dim=4, values=Table(16))
PARTS = dict(mixer=Attention(heads=2, kv_heads=1), ffn=Dense(Glu(hidden=8)))
SCALE = {'scale': jnp.ones(D)}
BLOCKS = {
  'reads': Skip(memory=MEMORY, **PARTS),
  'plain': PreNorm(**PARTS),
  'joins': Skip(joins=True, **PARTS),
  'both': Skip(memory=MEMORY, joins=True, **PARTS),
}


def made(**fields):
  """A model, its variables and a context."""
  built = model.Model(vocab=32, width=D, blocks=BLOCKS, **fields)
  draw = np.random.default_rng(0)
  places = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (2, T))
  tokens = jnp.asarray(draw.integers(1, 32, (2, T)), jnp.int32)
  ctx = Context(tokens, places, jnp.ones_like(tokens))
  variables = nn.unbox(jax.jit(built.init)(jax.random.key(0), ctx))
  return built, {'params': variables['params']}, ctx


def by_hand(params, names, groups, ctx):
  """Hidden states, block by block, the memory's results kept in a list."""

  def apply(module, own, *args):
    return module.apply({'params': own}, *args)

  x = params['embedding'][ctx.tokens_BT] * D**0.5
  kept = []
  for name, own in zip(names, groups, strict=True):
    z = apply(RmsNorm(), own['mixer_norm'], x)
    x = x + apply(PARTS['mixer'], own['mixer'], z, ctx, None)[0]
    z = apply(RmsNorm(), own['ffn_norm'], x)
    x = x + apply(PARTS['ffn'], own['ffn'], z, ctx)
    if name in ('joins', 'both'):
      x = x + sum(kept)
      kept = []
    if name in ('reads', 'both'):
      kept.append(apply(MEMORY, own['memory'], z, ctx))
  assert not kept
  return apply(RmsNorm(), params['final_norm'], x)


@pytest.mark.slow
def test_skip_pairs_equal_a_computation_by_hand():
  built, variables, ctx = made(
    prefix=('plain', 'reads'),
    pattern=('reads', 'plain', 'both', 'joins'),
    repeats=2,
    suffix=('plain',),
  )
  params = variables['params']
  groups = [params['before'][f'blocks_{i}'] for i in range(2)]
  groups += [
    jax.tree.map(lambda a, r=r: a[r], params['layers'][f'blocks_{i}'])
    for r in range(2)
    for i in range(4)
  ]
  groups.append(params['after']['blocks_0'])
  names = (*built.prefix, *built.pattern * 2, *built.suffix)
  want = by_hand(params, names, groups, ctx)
  got = jax.jit(built.apply)(variables, ctx)[0].hidden_BTD
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_skip_pairs_decode_as_they_train():
  built, variables, ctx = made(pattern=('reads', 'joins'), repeats=2)
  whole = built.apply(variables, ctx)[0].hidden_BTD
  state, found = built.init_state(2, T), []
  run = jax.jit(built.apply)
  for t in range(T):
    one = jax.tree.map(lambda a, t=t: a[:, t : t + 1], ctx)
    outputs, state = run(variables, one, state)
    found.append(outputs.hidden_BTD)
  np.testing.assert_allclose(
    jnp.concatenate(found, 1), whole, rtol=1e-4, atol=1e-5
  )


def test_a_pair_of_blocks_equals_a_computation_by_hand():
  """Without a model around them."""
  draw = np.random.default_rng(0)
  x = jnp.asarray(draw.normal(size=(2, T, D)), jnp.float32)
  ctx = Context(*(jnp.ones((2, T), jnp.int32),) * 3)
  memory = lambda z, ctx: z**2  # noqa: E731
  ffn = lambda z, ctx: 3 * z  # noqa: E731
  mixer = lambda z, ctx, state: (0 * z, state)  # noqa: E731
  first = Skip(mixer=mixer, ffn=ffn, memory=memory)
  last = Skip(mixer=mixer, ffn=ffn, joins=True)
  ones = {'params': dict.fromkeys(('mixer_norm', 'ffn_norm'), SCALE)}
  stream, _ = first.apply(ones, Stream(x, jnp.zeros_like(x)), ctx)
  z = RmsNorm().apply({'params': SCALE}, x)
  np.testing.assert_allclose(stream.x_BTD, x + 3 * z, rtol=1e-5)
  np.testing.assert_allclose(stream.held_BTD, z**2, rtol=1e-5)
  after, _ = last.apply(ones, stream, ctx)
  later = RmsNorm().apply({'params': SCALE}, stream.x_BTD)
  want = stream.x_BTD + 3 * later + z**2
  np.testing.assert_allclose(after.x_BTD, want, rtol=1e-5)
  assert not after.held_BTD.any()


@pytest.mark.parametrize(
  'pattern,place', [(('reads', 'plain'), 2), (('both',), 1)]
)
def test_a_memory_that_no_later_block_joins_is_refused(pattern, place):
  with pytest.raises(ValueError, match=f'block {place} of .* no later block'):
    made(pattern=pattern, repeats=2)


def test_the_published_skip_pairs_have_1003m_sparse_parameters():
  recipe = importlib.import_module('configs.papers.memory.skip_pairs')
  built = build(recipe.get_config('published').model, 'config.model')
  rows = {r.path: r for r in accounting.parameter_rows(built)}
  (table,) = [r for p, r in rows.items() if p.endswith('values/rows')]
  assert table.count == 4 * 808**2 * 384 == 1_002_799_104
  assert table.active_count == 4 * 2 * 80 * 384
  own = {
    p.split('/memory/')[1]: r.count for p, r in rows.items() if '/memory/' in p
  }
  assert own['out'] == 4 * (4 * 384) * 768
  assert own['halves/keys'] == 4 * 2 * 2 * 1616 * 384
  names = (*built.prefix, *built.pattern * built.repeats, *built.suffix)
  pairs = [
    [i for i, name in enumerate(names) if name == kind]
    for kind in ('reads', 'joins')
  ]
  assert pairs == [[2, 6, 10, 14], [5, 9, 13, 17]] and len(names) == 20
