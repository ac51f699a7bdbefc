"""What a layer keeps for its backward pass, at published shapes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from moejax import dispatch, experts, routers
from moejax.moe import Moe
from moejax.types import Context
from pallas_kernels.expert_ffn import memory
from pallas_kernels.expert_ffn.shapes import PUBLISHED


def _moe(layer):
  router = routers.Router(
    score=routers.scores.Linear(num_experts=layer.experts),
    k=layer.k,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  glu = experts.Glu(hidden=layer.n, num_experts=layer.experts)
  return Moe(router=router, dispatch=dispatch.Sort(), experts=glu)


def _kept(layer):
  """The output, and what beside parameters the backward pass is given."""
  moe = _moe(layer)
  x = jax.ShapeDtypeStruct((1, layer.tokens, layer.d), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((1, layer.tokens), jnp.int32)
  context = Context(ids, ids, ids, train=True)
  shapes = jax.eval_shape(moe.init, jax.random.key(0), x, context)
  params = nn.unbox(shapes['params'])
  found = []

  def run(params, x, context):
    def f(params, x):
      return moe.apply({'params': params}, x, context)

    y, pull = jax.vjp(f, params, x)
    kept = jax.tree.leaves(pull)
    # Parameters come back as they went in and are not counted.
    own = {id(a) for a in jax.tree.leaves(params)}
    found.extend(a.aval for a in kept if id(a) not in own)
    return y

  y = jax.eval_shape(run, params, x, context)
  return [y, *found]


def _bytes(arrays):
  return sum(a.size * a.dtype.itemsize for a in arrays)


@pytest.mark.parametrize('name', list(PUBLISHED))
def test_a_layer_keeps_tokens_and_pre_activations(name):
  layer = PUBLISHED[name]
  ideal = 4 * layer.tokens * layer.d + 4 * layer.rows * layer.n
  # The output counts as well: the next layer keeps it.
  assert _bytes(_kept(layer)) <= 1.02 * ideal


# GiB for one layer, read off the chart of arXiv 2512.14080 (bf16).
CHART = {
  '1.4B n256': 0.56,
  '7B n256': 0.61,
  '30B n256': 2.45,
  '120B n512': 4.48,
}


@pytest.mark.parametrize('name', list(CHART))
def test_the_memory_model_gives_the_published_chart(name):
  problem = memory.Problem(*dataclasses.astuple(PUBLISHED[name]))
  gib = memory.published(problem) / 2**30
  assert gib == pytest.approx(CHART[name], rel=0.03)
