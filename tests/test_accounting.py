"""Parameters and FLOPs, against what the arrays and XLA say."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from configs import common
from moejax import accounting
from moejax.build import build
from moejax.state import blank_context

pytestmark = pytest.mark.usefixtures('quick_compilation')
LENGTH = 64


def _model(ffn, **fields):
  block = common.block(common.attention(4, 2, **fields), ffn)
  return build(
    common.node(
      'model.Model', vocab=97, width=64, blocks={'b': block}, pattern=('b',)
    )
  )


def _xla_flops_per_token(model):
  ctx = blank_context(2, LENGTH)
  variables = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ctx))
  variables = {'params': variables['params']}

  def forward(variables):
    return model.apply(variables, ctx)[0].logits_BTV()

  cost = jax.jit(forward).lower(variables).compile().cost_analysis()
  return cost['flops'] / (2 * LENGTH)


@pytest.mark.parametrize(
  'ffn',
  [
    common.dense(160),
    common.node('moe.Dense', expert=common.node('experts.Mlp', hidden=160)),
    # Every expert sees every token under the mask: as dense as k = E.
    common.moe(3, 3, 48, shared=32, dispatch=common.node('dispatch.Mask')),
  ],
  ids=['glu', 'mlp', 'moe'],
)
def test_flops_are_those_that_xla_counts(ffn):
  model = _model(ffn)
  # XLA computes the whole square of scores, the model's count is its half.
  other_half = 4 * 64 * (LENGTH - 1) / 2
  counted = model.flops(LENGTH) + other_half
  xla = _xla_flops_per_token(model)
  # Norms, rotations and softmaxes are XLA's surplus: a few percent here.
  assert counted <= xla <= 1.08 * counted


def test_attention_pays_for_the_keys_that_are_seen():
  for window in (None, 16, 200):
    seen = sum(min(t + 1, window or t + 1) for t in range(LENGTH)) / LENGTH
    narrow = _model(common.dense(64), window=window).flops(LENGTH)
    wide = _model(common.dense(64), window=window).flops(2 * LENGTH)
    projections = 2 * 64 * 16 * (2 * 4 + 2 * 2)
    rest = projections + 6 * 64 * 64 + 2 * 64 * 97
    assert (narrow - rest) / (4 * 64) == pytest.approx(seen)
    assert (wide > narrow) or window == 1


def test_parameter_totals_are_those_of_the_arrays():
  model = _model(common.moe(8, 2, 48, shared=32))
  init = jax.jit(model.init)
  variables = init(jax.random.key(0), blank_context())
  arrays = jax.tree.leaves(nn.unbox(variables['params']))
  described = accounting.describe(model, LENGTH)
  assert described['params_total'] == sum(a.size for a in arrays)
  experts = 8 * 3 * 64 * 48
  idle = experts * 6 / 8
  assert described['params_active'] == described['params_total'] - idle
  embedding = 97 * 64
  assert (
    described['params_total'] - described['params_total_non_embedding']
    == embedding
  )


def test_parts_add_up_to_the_whole_and_the_table_shows_them():
  model = _model(common.moe(8, 2, 48, shared=32))
  found = {part.path: part for part in accounting.parts(model, LENGTH)}
  described = accounting.describe(model, LENGTH)
  assert sum(p.flops for p in found.values()) == model.flops(LENGTH)
  assert sum(p.params for p in found.values()) == described['params_total']
  active = sum(p.params_active for p in found.values())
  assert active == described['params_active']
  experts = found['layers/blocks_0/ffn/experts']
  assert experts[1:] == (8 * 3 * 64 * 48, 2 * 3 * 64 * 48, 2 * 6 * 64 * 48)
  assert found['layers/blocks_0/ffn/shared'].flops == 6 * 64 * 32
  assert found['head'][1:] == (0, 0, 2 * 64 * 97)
  assert found['embedding'].flops == 0
  assert described['flops_per_token_6n'] == 6 * active
  text = accounting.table(model, LENGTH)
  assert f'{described["params_total"]:,}' in text and '6 N is' in text


def test_training_costs_three_forward_passes():
  model = _model(common.dense(64))
  trained = accounting.train_flops_per_token(model, LENGTH)
  assert trained == 3 * model.flops(LENGTH)


def test_flops_grow_with_repeats_but_for_the_head():
  one, two = (
    build(
      common.node(
        'model.Model',
        vocab=97,
        width=64,
        blocks={'b': common.block(common.attention(4), common.dense(64))},
        pattern=('b',),
        repeats=repeats,
      )
    )
    for repeats in (1, 2)
  )
  head = 2 * 64 * 97
  assert two.flops(LENGTH) - head == 2 * (one.flops(LENGTH) - head)
  assert jnp.isfinite(two.flops(1))
