"""The experts' feed-forward against every expert in float64."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.expert_ffn import memory
from pallas_kernels.expert_ffn.api import PRE_ACTIVATIONS, expert_ffn
from pallas_kernels.expert_ffn.shapes import Layer
from tests.kernels.oracle import (
  assert_close,
  layer,
  layer_inputs,
  relu_squared,
)

IMPLEMENTATIONS = [None, 'rows', 'reference']
# name -> N, D, F, E, K
SHAPES = {
  'smoke': (24, 8, 12, 4, 2),
  'one token': (1, 5, 3, 4, 2),
  'more experts than pairs': (6, 8, 4, 40, 2),
  'one expert': (70, 8, 8, 1, 1),
  'odd': (101, 20, 37, 3, 3),
}
# What compiles long and is close to another is left to the slow run.
FAST = ('more experts than pairs',)
CASES = [
  pytest.param(
    name, how, marks=() if how is None or name in FAST else pytest.mark.slow
  )
  for name in SHAPES
  for how in IMPLEMENTATIONS
]


# After 0.10.2, lowering for CUDA compiles Triton, which is in the plugin.
NEEDS_TRITON = pytest.mark.skipif(
  jax.__version_info__ > (0, 10, 2)
  and importlib.util.find_spec('jax_cuda12_plugin') is None,
  reason="needs the CUDA plugin: pip install -e '.[cuda]'",
)


def _pulled(f, args, dy):
  y, pull = jax.vjp(f, *args)
  return y, *pull(dy)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _results(
  args, ids, dy, activation=jax.nn.silu, implementation=None, wrap=lambda f: f
):
  f = wrap(
    lambda *a: expert_ffn(
      *a[:4], ids, a[4], activation=activation, implementation=implementation
    )
  )
  return _pulled(f, args, dy)


@pytest.mark.parametrize('name, implementation', CASES)
def test_outputs_and_gradients_equal_every_expert(name, implementation):
  args, ids, dy = layer_inputs(SHAPES[name])
  want = layer(args, ids, dy, jax.nn.silu)
  got = _results(args, ids, dy, jax.nn.silu, implementation)
  assert_close(got, want, 1e-5)


@pytest.mark.parametrize(
  'activation',
  [jax.nn.gelu, pytest.param(relu_squared, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_ungated_equals_every_expert(implementation, activation):
  args, ids, dy = layer_inputs(SHAPES['smoke'], gated=False)
  want = layer(args, ids, dy, activation)
  got = _results(args, ids, dy, activation, implementation)
  assert_close(got, want, 1e-5)


@pytest.mark.parametrize(
  'implementation', [None, pytest.param('rows', marks=pytest.mark.slow)]
)
def test_bf16_is_close_to_every_expert(implementation):
  args, ids, dy = layer_inputs(SHAPES['odd'], jnp.bfloat16)
  got = _results(args, ids, dy, jax.nn.silu, implementation)
  assert [a.dtype for a in got] == [jnp.bfloat16] * 5 + [jnp.float32]
  assert_close(got, layer(args, ids, dy, jax.nn.silu), 2e-2)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_parameters_of_f32_serve_tokens_of_bf16(implementation):
  (x, *matrices, weights), ids, dy = layer_inputs(SHAPES['odd'])
  # What bf16 can hold, so that only the arithmetic differs.
  matrices = [w.astype(jnp.bfloat16).astype(jnp.float32) for w in matrices]
  args = (x.astype(jnp.bfloat16), *matrices, weights)
  dy = dy.astype(jnp.bfloat16)
  y, dx, *rest = _results(args, ids, dy, jax.nn.silu, implementation)
  assert y.dtype == dx.dtype == jnp.bfloat16
  assert [a.dtype for a in rest] == [jnp.float32] * 4
  assert_close((y, dx, *rest), layer(args, ids, dy, jax.nn.silu), 2e-2)


@pytest.mark.parametrize('implementation', [None, 'rows'])
def test_many_rows_of_one_expert_equal_the_reference(implementation):
  ids = np.where(np.arange(1400) % 50 == 0, 2, 1)[:, None]
  args, ids, dy = layer_inputs((1400, 4, 4, 3, 1), ids=ids)
  want = _results(args, ids, dy, jax.nn.silu, 'reference')
  got = _results(args, ids, dy, jax.nn.silu, implementation)
  assert_close(got, jax.tree.map(np.asarray, want), 1e-5)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_no_expert_leaks_nothing(implementation):
  args, _, dy = layer_inputs(SHAPES['smoke'])
  ids = jnp.full((24, 2), 4, jnp.int32).at[3].set(jnp.array([1, 4]))
  dead = (jnp.arange(24) != 3)[:, None]
  x, gate, up, down, weights = args
  x, dy = jnp.where(dead, jnp.nan, x), jnp.where(dead, jnp.nan, dy)
  got = _results(
    (x, gate, up, down, weights), ids, dy, jax.nn.silu, implementation
  )
  y, dx, *dmatrices, dweights = got
  for a in (y, dx, dweights):
    assert not np.asarray(a)[np.arange(24) != 3].any()
    assert np.asarray(a)[3].any()
  assert dweights[3, 1] == 0
  assert all(np.isfinite(w).all() for w in dmatrices)


def test_uniform_weights_of_a_linear_unit_give_the_input_back():
  n, d, e, k = 30, 6, 5, 3
  eye = jnp.broadcast_to(jnp.eye(d), (e, d, d))
  rng = np.random.default_rng(0)
  x, dy = (jnp.asarray(rng.normal(size=(n, d)), jnp.float32) for _ in range(2))
  ids = jnp.asarray(rng.integers(0, e, (n, k)), jnp.int32)
  weights = jnp.full((n, k), 1 / k)

  def f(x):
    return expert_ffn(x, eye, None, eye, ids, weights, activation=jnp.real)

  y, dx = jax.jit(functools.partial(_pulled, f))((x,), dy)
  np.testing.assert_allclose(y, x, rtol=1e-6)
  np.testing.assert_allclose(dx, dy, rtol=1e-6)


def test_the_name_is_what_cpu_gets():
  args, ids, dy = layer_inputs(SHAPES['smoke'])
  results = (_results(args, ids, dy, jax.nn.silu, i) for i in (None, 'tiles'))
  for a, b in zip(*results, strict=True):
    np.testing.assert_array_equal(a, b)


def test_without_jit_equals_every_expert():
  args, ids, dy = layer_inputs(SHAPES['one token'])
  want = layer(args, ids, dy, jax.nn.silu)
  assert_close(_results.__wrapped__(args, ids, dy), want, 1e-5)


def test_under_checkpoint_equals_every_expert():
  args, ids, dy = layer_inputs(SHAPES['smoke'])
  want = layer(args, ids, dy, jax.nn.silu)
  got = _results(args, ids, dy, jax.nn.silu, None, jax.checkpoint)
  assert_close(got, want, 1e-5)


def test_scan_over_layers_equals_a_python_loop():
  args, ids, dy = layer_inputs(SHAPES['smoke'])
  x, *matrices, weights = args
  stack = jax.tree.map(lambda w: jnp.stack([w, w / 2]), matrices)

  def one(x, matrices):
    y = expert_ffn(x, *matrices, ids, weights, activation=jax.nn.silu)
    return x + y / 100, None

  def two_layers(x, first, second):
    return one(one(x, first)[0], second)[0]

  @jax.jit
  def scanned(x, stack, dy):
    return _pulled(lambda *a: jax.lax.scan(one, *a)[0], (x, stack), dy)

  @jax.jit
  def unrolled(x, stack, dy):
    first = jax.tree.map(lambda w: w[0], stack)
    second = jax.tree.map(lambda w: w[1], stack)
    y, dx, *dmatrices = _pulled(two_layers, (x, first, second), dy)
    return y, dx, jax.tree.map(lambda *w: jnp.stack(w), *dmatrices)

  got, want = (f(x, stack, dy) for f in (scanned, unrolled))
  assert_close(got, jax.tree.map(np.asarray, want), 1e-5)


def test_vmap_equals_every_expert():
  args, ids, dy = layer_inputs(SHAPES['smoke'])
  x, *rest = args
  run = jax.vmap(lambda x, ids: _results((x, *rest), ids, dy))
  got = jax.jit(run)(jnp.stack([x, 2 * x]), jnp.stack([ids, ids[::-1]]))
  for i, (each, chosen) in enumerate([(x, ids), (2 * x, ids[::-1])]):
    want = layer((each, *rest), chosen, dy, jax.nn.silu)
    assert_close(tuple(a[i] for a in got), want, 1e-5)


def _kept(args, ids):
  """Shapes and dtypes of what the backward pass is given."""

  def pull(*a):
    return jax.vjp(
      lambda *a: expert_ffn(*a[:4], ids, a[4], activation=jax.nn.silu), *a
    )[1]

  return jax.tree.leaves(jax.eval_shape(pull, *args))


def test_backward_keeps_only_inputs_and_pre_activations():
  n, d, f, e, k = shape = (64, 32, 16, 4, 8)
  args, ids, _ = layer_inputs(shape)
  kept = sum(
    a.size for a in _kept(args, ids) if jnp.issubdtype(a.dtype, jnp.floating)
  )
  assert kept == n * d + 2 * n * k * f + n * k + 3 * e * d * f


@pytest.mark.parametrize('gated', [True, False])
def test_the_memory_model_knows_what_is_kept(gated):
  (x, *rest), ids, _ = layer_inputs((64, 32, 16, 4, 8), gated=gated)
  args = (x.astype(jnp.bfloat16), *rest)
  problem = memory.Problem(Layer(64, 32, 16, 4, 8), gated=gated)
  # Parameters are the caller's; nothing is a copy of them in another dtype.
  parameters = 4 * problem.matrix_elements
  kept = sum(a.size * a.dtype.itemsize for a in _kept(args, ids))
  assert kept == memory.kept(problem) + parameters


def test_a_policy_that_names_pre_activations_spares_the_second_forward():
  args, ids, dy = layer_inputs(SHAPES['smoke'])

  def products(policy):
    wrap = functools.partial(jax.checkpoint, policy=policy)
    results = functools.partial(_results, wrap=wrap, implementation='tiles')
    f = jax.jit(lambda args, dy: results(args, ids, dy))
    return f.lower(args, dy).compile().as_text().count(' while(')

  policies = jax.checkpoint_policies
  named = policies.save_only_these_names(PRE_ACTIVATIONS)
  assert products(named) < products(policies.nothing_saveable)
  got = _results(args, ids, dy, wrap=jax.checkpoint)
  assert_close(got, layer(args, ids, dy, jax.nn.silu), 1e-5)


def test_forward_alone_keeps_no_pre_activations():
  args, ids, _ = layer_inputs((512, 16, 64, 4, 8))

  @jax.jit
  def f(*a):
    return expert_ffn(*a[:4], ids, a[4], activation=jax.nn.silu)

  memory = f.lower(*args).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 512 * 8 * 64 * 4


def _traced(activation=jax.nn.silu):
  args, ids, dy = layer_inputs(SHAPES['smoke'])
  f = jax.jit(lambda args, dy: _results(args, ids, dy, activation))
  return f.trace(args, dy)


def test_tpu_gets_sorted_rows():
  traced = _traced()
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  assert text.count('tpu_custom_call') >= 9
  assert 'tpu_custom_call' not in traced.lower().as_text()


@NEEDS_TRITON
def test_cuda_gets_its_own_kernels():
  text = _traced().lower(lowering_platforms=('cuda',)).as_text()
  assert 'ragged_dot' not in text
  for name in ('up', 'down', 'combine', 'dh', 'dw_down', 'dw_first', 'dx'):
    assert f'"expert_{name}"' in text


@NEEDS_TRITON
def test_cuda_gets_grouped_products_where_the_activation_cannot_be_fused():
  exact = functools.partial(jax.nn.gelu, approximate=False)
  text = _traced(exact).lower(lowering_platforms=('cuda',)).as_text()
  assert 'ragged_dot' not in text
  assert '"expert_up"' not in text
  for name in ('nn', 'nt', 'tn'):
    assert f'"grouped_{name}"' in text


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(x=jnp.zeros((4, 3))), r'gate and up \[E, D, F\]'),
    (dict(down=jnp.zeros((2, 2, 5))), r'down \[E, F, D\]'),
    (dict(gate=jnp.zeros((2, 2, 5), jnp.bfloat16)), 'bfloat16, float32'),
    (
      dict(
        gate=jnp.zeros((2, 2, 5), jnp.bfloat16),
        down=jnp.zeros((2, 5, 2), jnp.bfloat16),
      ),
      'matrices are bfloat16 and x is float32',
    ),
    (dict(ids=jnp.zeros((4, 1), jnp.int32)), r'ids and weights \[N, K\]'),
    (dict(ids=jnp.zeros((4, 3))), 'ids are float32'),
    (dict(weights=jnp.zeros((4, 3), jnp.int32)), 'weights are int32'),
    (dict(implementation='quick'), "implementation='quick' is unknown"),
  ],
)
def test_misfits_are_refused(change, message):
  args = dict(
    x=jnp.zeros((4, 2)),
    gate=jnp.zeros((2, 2, 5)),
    up=None,
    down=jnp.zeros((2, 5, 2)),
    ids=jnp.zeros((4, 3), jnp.int32),
    weights=jnp.zeros((4, 3)),
    implementation=None,
  )
  args |= change
  implementation = args.pop('implementation')
  with pytest.raises(ValueError, match=message):
    expert_ffn(
      *args.values(), activation=jax.nn.silu, implementation=implementation
    )
