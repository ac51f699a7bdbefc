"""The feed-forward's GPU kernels, interpreted, against every expert."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.expert_ffn import pallas_gpu
from pallas_kernels.expert_ffn.gpu_activation import cannot_fuse
from pallas_kernels.grouped_matmul.gpu_tiles import Tiles
from pallas_kernels.route.api import permutation
from tests.kernels.oracle import (
  assert_close,
  layer,
  layer_inputs,
  relu_squared,
)

# The interpreter's program is nobody's: only its results count.
pytestmark = pytest.mark.usefixtures('quick_compilation')
KERNELS = ('up', 'down', 'dh', 'dw_down', 'dw_first', 'dx')
SMALL_TILES = dict.fromkeys(KERNELS, Tiles(16, 16, 16))
# Several pieces after each product, and widths that no block divides.
WIDE_TILES = dict.fromkeys(KERNELS, Tiles(64, 128, 32, num_warps=4))
# name -> N, D, F, E, K
SHAPES = {
  'one token': (1, 5, 3, 4, 2),
  'more experts than pairs': (6, 8, 4, 40, 2),
  'one expert': (70, 8, 8, 1, 1),
  'odd': (101, 20, 37, 3, 3),
}


@functools.partial(jax.jit, static_argnums=(3, 4))
def _results(args, ids, dy, activation, wide):
  """y, all gradients, and y of a call that keeps nothing."""
  x, *matrices, weights = args
  p = permutation(ids, matrices[0].shape[0])
  static = dict(
    activation=activation,
    tiles=WIDE_TILES if wide else SMALL_TILES,
    interpret=True,
  )
  args = (x, tuple(matrices), weights, p)
  y, kept = pallas_gpu.forward(*args, keep=True, **static)
  alone, nothing = pallas_gpu.forward(*args, keep=False, **static)
  assert nothing == (None, None)
  dx, dw, dweights = pallas_gpu.backward(*args, kept, dy, **static)
  return (y, dx, *dw, dweights), alone


def _check(shape, dtype, activation, gated=True, wide=False):
  args, ids, dy = layer_inputs(shape, dtype, gated)
  got, alone = _results(args, ids, dy, activation, wide)
  want = layer(args, ids, dy, activation)
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  assert_close(got, want, tolerance)
  np.testing.assert_array_equal(got[0], alone)
  return got


@pytest.mark.parametrize('name', list(SHAPES))
def test_outputs_and_gradients_equal_every_expert(name):
  _check(SHAPES[name], jnp.float32, jax.nn.silu)


@pytest.mark.parametrize(
  'dtype',
  [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)],
)
def test_widths_that_no_tile_divides_equal_every_expert(dtype):
  got = _check((50, 100, 600, 3, 2), dtype, jax.nn.silu, wide=True)
  assert [a.dtype for a in got] == [dtype] * 5 + [jnp.float32]


@pytest.mark.parametrize('activation', [jax.nn.gelu, relu_squared])
def test_ungated_equals_every_expert(activation):
  _check(SHAPES['odd'], jnp.float32, activation, gated=False)


def test_many_choices_for_each_token_equal_every_expert():
  _check((5, 8, 4, 6, 20), jnp.float32, jnp.tanh)


@given(ids=st.lists(st.integers(-1, 5), min_size=48, max_size=48))
@settings(max_examples=15, deadline=None)
def test_any_choice_of_experts_equals_every_expert(ids):
  args, _, dy = layer_inputs((24, 8, 12, 4, 2))
  ids = jnp.array(ids, jnp.int32).reshape(24, 2)
  got, _ = _results(args, ids, dy, jax.nn.silu, False)
  assert_close(got, layer(args, ids, dy, jax.nn.silu), 1e-5)


def test_no_expert_leaks_nothing():
  args, _, dy = layer_inputs((24, 8, 12, 4, 2))
  ids = jnp.full((24, 2), 4, jnp.int32).at[3].set(jnp.array([1, 4]))
  dead = (jnp.arange(24) != 3)[:, None]
  x, *matrices, weights = args
  x, dy = jnp.where(dead, jnp.nan, x), jnp.where(dead, jnp.nan, dy)
  weights = jnp.where(dead, jnp.nan, weights).at[3, 1].set(jnp.nan)
  args = (x, *matrices, weights)
  (y, dx, *dw, dweights), _ = _results(args, ids, dy, jax.nn.silu, False)
  for a in (y, dx, dweights):
    assert not np.asarray(a)[np.arange(24) != 3].any()
    assert np.isfinite(a[3]).all() and np.asarray(a)[3].any()
  assert dweights[3, 1] == 0
  for w in dw:
    assert np.isfinite(w).all()
    assert not np.asarray(w)[np.array([0, 2, 3])].any()
    assert np.asarray(w)[1].any()


@pytest.mark.skipif(
  jax.__version_info__ > (0, 10, 2)
  and importlib.util.find_spec('jax_cuda12_plugin') is None,
  reason='after 0.10.2, lowering for CUDA compiles Triton: needs the plugin',
)
@pytest.mark.parametrize(
  'activation',
  [
    *(jax.nn.relu, jax.nn.elu, jax.nn.mish, jax.nn.softplus, jax.nn.celu),
    *(jax.nn.hard_swish, jax.nn.squareplus, jnp.real),
  ],
)
def test_what_is_said_to_run_inside_of_kernels_lowers(activation):
  assert cannot_fuse(activation) is None
  args, ids, dy = layer_inputs(SHAPES['one token'])
  x, *matrices, weights = args

  def both(x, matrices, weights, dy):
    args = (x, tuple(matrices), weights, permutation(ids, 4))
    y, kept = pallas_gpu.forward(*args, activation=activation, keep=True)
    return y, pallas_gpu.backward(*args, kept, dy, activation=activation)

  traced = jax.jit(both).trace(x, matrices, weights, dy)
  text = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert '"expert_up"' in text and '"expert_dh"' in text


def test_an_activation_that_triton_lacks_is_refused_by_name():
  exact = functools.partial(jax.nn.gelu, approximate=False)
  assert 'erfc' in cannot_fuse(exact)
  assert 'atan' in cannot_fuse(jnp.arctan)


def test_an_activation_that_holds_an_array_is_refused():
  table = jnp.arange(16.0)
  assert 'array' in cannot_fuse(lambda x: x * table)


def test_an_activation_without_a_hash_is_examined_too():
  class Scaled:
    __hash__ = None

    def __call__(self, x):
      return 2 * jnp.tanh(x)

  assert cannot_fuse(Scaled()) is None


def test_tiles_of_an_unknown_kernel_are_refused():
  args, ids, _ = layer_inputs(SHAPES['one token'])
  x, *matrices, _ = args
  with pytest.raises(ValueError, match='names dz; the kernels are up, down'):
    pallas_gpu.layer_tiles(
      x, matrices, permutation(ids, 4), {'dz': Tiles(16, 16, 16)}
    )
