"""What a layer keeps for its backward pass, at published shapes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from moejax import dispatch, experts, routers
from moejax.moe import Moe
from moejax.types import Context
from pallas_kernels.expert_ffn import memory
from pallas_kernels.expert_ffn.api import PRE_ACTIVATIONS
from pallas_kernels.expert_ffn.shapes import PUBLISHED, Layer

SMALL = Layer(tokens=64, d=32, n=16, experts=4, k=2)


def _moe(layer):
  router = routers.Router(
    score=routers.scores.Linear(num_experts=layer.experts),
    k=layer.k,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  glu = experts.Glu(hidden=layer.n, num_experts=layer.experts)
  return Moe(router=router, dispatch=dispatch.Sort(), experts=glu)


def _kept(layer, wrap=lambda f: f):
  """The output, and what there is beside parameters for the backward pass."""
  moe = _moe(layer)
  x = jax.ShapeDtypeStruct((1, layer.tokens, layer.d), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((1, layer.tokens), jnp.int32)
  context = Context(ids, ids, ids, train=True)
  shapes = jax.eval_shape(moe.init, jax.random.key(0), x, context)
  params = nn.unbox(shapes['params'])
  found = {}

  def run(params, x, context):
    def f(params, x):
      return moe.apply({'params': params}, x, context)

    y, pull = jax.vjp(wrap(f), params, x)
    kept = jax.tree.leaves(pull)
    # The parameters themselves come back as they went in, tracers and all.
    own = {id(a) for a in jax.tree.leaves(params)}
    found['kept'] = [
      (a.shape, a.dtype) for a in kept if hasattr(a, 'dtype')
      and id(a) not in own
    ]
    return y

  y = jax.eval_shape(run, params, x, context)
  return y, found['kept']


def _bytes(arrays):
  return sum(
    jnp.dtype(dtype).itemsize * functools.reduce(int.__mul__, shape, 1)
    for shape, dtype in arrays
  )


def _problem(layer, **fields):
  return memory.Problem(*dataclasses.astuple(layer), **fields)


@pytest.mark.parametrize('name', list(PUBLISHED))
def test_a_layer_keeps_tokens_and_pre_activations(name):
  layer = PUBLISHED[name]
  y, kept = _kept(layer)
  ideal = 4 * layer.tokens * layer.d + 4 * layer.rows * layer.n
  # The output counts as well: it is what the next layer keeps.
  assert _bytes([(y.shape, y.dtype), *kept]) <= 1.02 * ideal
