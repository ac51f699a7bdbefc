"""Wrappers of routers in configs: built by name, checked, and decoded with."""

import jax
import numpy as np
import pytest

from configs import common
from moejax import fields, state
from moejax.build import ConfigError, build
from moejax.infer import pad_prompts
from moejax.infer.decode import require_causal
from moejax.types import Context


def wrapped(small, kind, **fields_):
  """A config of the small model whose router is inside a wrapper."""
  config = small.config()
  ffn = config.model.blocks.sparse.ffn
  ffn.router = common.node(kind, inner=ffn.router, **fields_)
  return config


def test_a_model_trained_with_whole_tiles_decodes_by_its_inner_router(small):
  rounding = build(wrapped(small, 'routers.TokenRounding', tile_rows=64).model)
  plain = build(small.config().model)
  shapes = state.abstract_variables(plain)[0]
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes
  )
  ffn = variables['params']['layers']['blocks_0']['ffn']
  inside = {**ffn, 'router': {'inner': ffn['router']}}
  moved = jax.tree.map(lambda a: a, variables)
  moved['params']['layers']['blocks_0']['ffn'] = inside
  # As decoding calls it: fewer tokens than a tile, and not training.
  require_causal(rounding)
  prompts = pad_prompts(([3, 9, 4, 1], [7]))
  ctx = Context(prompts.tokens_BT, prompts.positions_BT, prompts.segments_BT)
  got, want = (
    jax.jit(model.apply)(values, ctx, model.init_state(2, 6))[0].hidden_BTD
    for model, values in ((rounding, moved), (plain, variables))
  )
  np.testing.assert_array_equal(got, want)


def test_decoding_refuses_a_route_by_the_place_in_the_call(small):
  for kind in ('routers.RoundRobin', 'routers.Sampled'):
    model = build(wrapped(small, kind).model)
    with pytest.raises(ValueError, match=kind.split('.')[1] + ' sees later'):
      require_causal(model)
  require_causal(build(wrapped(small, 'routers.Biased', std=0.5).model))


def test_what_joins_router_and_experts_is_checked_inside_wrappers(small):
  config = wrapped(small, 'routers.TokenRounding')
  fields.check(config)
  inner = config.model.blocks.sparse.ffn.router.inner
  inner.k = 5
  with pytest.raises(ValueError, match=r'ffn.router.inner.k=5 is more than'):
    fields.check(config)
  inner.k, inner.score.num_experts = 2, 3
  with pytest.raises(ValueError, match=r'router.inner.score.num_experts=3'):
    fields.check(config)


def test_a_field_that_a_wrapper_lacks_is_refused_by_name(small):
  config = wrapped(small, 'routers.TokenRounding', tiles=8)
  with pytest.raises(ConfigError, match="has no field 'tiles'.*tile_rows"):
    build(config.model)
