"""What a layer keeps for its backward pass, and what it takes on CPU."""

import jax
import pytest

from pallas_kernels.expert_ffn import memory
from pallas_kernels.expert_ffn.shapes import (
  HOST,
  HOST_FINE_GRAINED,
  PUBLISHED,
  Layer,
)
from tests.kernels import aot_layer


def _kept(layer):
  """The output, and what beside parameters the backward pass is given."""
  params, x, context, apply = aot_layer.build(layer, None, 'bfloat16')
  found = []

  def run(params, x, context):
    y, pull = jax.vjp(lambda *a: apply(*a, context), params, x)
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
  problem = memory.Problem(PUBLISHED[name])
  gib = memory.published(problem) / 2**30
  assert gib == pytest.approx(CHART[name], rel=0.03)


# One loop, over tiles of 64 rows: quick to compile.
SMALL = Layer(2048, 64, 32, 256, 4)
SLOW = (*HOST.values(), *HOST_FINE_GRAINED.values())


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize(
  'layer',
  [SMALL, *(pytest.param(layer, marks=pytest.mark.slow) for layer in SLOW)],
)
def test_a_layer_on_cpu_takes_the_memory_of_the_model(layer, backward):
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  compiled = aot_layer.compile_layer(layer, backward, here, 'float32')
  found = compiled.memory_analysis().temp_size_in_bytes
  model = memory.temporary_on_cpu(
    memory.Problem(layer, activation_bytes=4), backward
  )
  assert found == pytest.approx(model, rel=0.1)


def test_memory_on_cpu_is_refused_for_bf16():
  with pytest.raises(ValueError, match='2 bytes of an activation'):
    memory.temporary_on_cpu(memory.Problem(SMALL), False)
