"""The feed-forward's TPU kernels, interpreted, against a loop over experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.expert_ffn import pallas_tpu
from pallas_kernels.expert_ffn.api import expert_ffn
from pallas_kernels.grouped_matmul.tile_shapes import TileShape
from pallas_kernels.route.api import permutation
from tests.kernels.oracle import (
  assert_close,
  layer,
  layer_inputs,
  relu_squared,
)

# The interpreter's program is nobody's: only its results count.
pytestmark = pytest.mark.usefixtures('quick_compilation')
# Leaves NaN in all that nothing was written to, and past the ends of arrays.
STRICT = pltpu.InterpretParams(uninitialized_memory='nan')
# Several tiles along every axis, with a part of one left over.
SMALL_TILES = TileShape(16, 128, 128)
# name -> N, D, F, E, K
SHAPES = {
  'one pair': (1, 5, 3, 2, 1),
  'one token': (1, 5, 3, 4, 2),
  'more experts than pairs': (6, 8, 4, 40, 2),
  'one expert': (70, 8, 8, 1, 1),
  'odd': (101, 20, 37, 3, 3),
  'D last in memory': (40, 128, 100, 3, 2),
}


def _inputs(shape, dtype=jnp.float32, gated=True):
  """Arguments, ids and dy; tokens of no expert hold NaN."""
  args, ids, dy = layer_inputs(shape, dtype, gated)
  n, experts = shape[0], shape[3]
  ids = ids.at[n // 2 :: 7].set(experts)
  dead = (ids == experts).all(1)[:, None]
  x, dy = (jnp.where(dead, jnp.nan, a) for a in (args[0], dy))
  return (x, *args[1:]), ids, dy


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _results(args, ids, dy, activation, tiles, interpret):
  """y, all gradients, and y of a call that keeps nothing."""
  x, *matrices, weights = args
  p = permutation(ids, matrices[0].shape[0])
  args = (x, tuple(matrices), weights, p)
  static = dict(activation=activation, tiles=tiles, interpret=interpret)
  y, kept = pallas_tpu.forward(*args, keep=True, **static)
  alone, nothing = pallas_tpu.forward(*args, keep=False, **static)
  assert nothing == (None, None)
  dx, dw, dweights = pallas_tpu.backward(*args, kept, dy, **static)
  return (y, dx, *dw, dweights), alone


def _check(inputs, activation, tiles=None, interpret=True, tolerance=1e-5):
  got, alone = _results(*inputs, activation, tiles, interpret)
  assert_close(got, layer(*inputs, activation), tolerance)
  np.testing.assert_array_equal(got[0], alone)
  return got


@pytest.mark.parametrize('name', list(SHAPES))
def test_outputs_and_gradients_equal_a_loop_over_experts(name):
  _check(_inputs(SHAPES[name]), jax.nn.silu)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_widths_that_no_tile_divides_equal_a_loop_over_experts(dtype):
  inputs = _inputs((50, 300, 200, 4, 2), dtype)
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  got = _check(inputs, jax.nn.silu, SMALL_TILES, tolerance=tolerance)
  assert [a.dtype for a in got] == [dtype] * 5 + [jnp.float32]


@pytest.mark.parametrize('activation', [jax.nn.gelu, relu_squared])
def test_ungated_equals_a_loop_over_experts(activation):
  _check(_inputs(SHAPES['odd'], gated=False), activation)


def test_memory_that_nothing_wrote_is_never_used():
  # The interpreter takes no parts of blocks of what is written in place.
  args = _inputs((20, 136, 256, 3, 2))
  _check(args, jax.nn.silu, TileShape(8, 128, 128), STRICT)


@pytest.mark.parametrize('gated', [True, False])
def test_both_kernels_are_in_what_is_lowered_for_tpu(gated):
  (x, *matrices, weights), ids, dy = _inputs(SHAPES['odd'], jnp.bfloat16, gated)
  # Matrices in a wider dtype than the tokens.
  matrices = jax.tree.map(lambda w: w.astype(jnp.float32), matrices)

  def both(x, matrices, weights, dy):
    def y(x, matrices, weights):
      return expert_ffn(
        *(x, *matrices, ids, weights),
        activation=jax.nn.silu,
        implementation='mosaic_tpu',
      )

    return jax.vjp(y, x, matrices, weights)[1](dy)

  traced = jax.jit(both).trace(x, matrices, weights, dy)
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert 'expert_up' in text and 'expert_dh' in text


def test_an_activation_that_tpu_kernels_lack_is_refused_by_name():
  (x, *matrices, weights), ids, _ = _inputs(SHAPES['odd'])
  with pytest.raises(NotImplementedError, match='TPU kernels have no atan'):
    expert_ffn(
      *(x, *matrices, ids, weights),
      activation=jnp.arctan,
      implementation='mosaic_tpu',
    )
