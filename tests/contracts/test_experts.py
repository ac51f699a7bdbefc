"""Experts: `Rows -> Rows`, the same on ragged and on padded rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from moejax import experts
from moejax.types import Padded, Ragged

pytestmark = pytest.mark.usefixtures('quick_compilation')
SIZES = (3, 0, 5, 1, 0, 0, 4, 2)  # rows of each expert; 15 in all


@pytest.fixture(scope='module')
def rows():
  return jax.random.normal(jax.random.key(0), (sum(SIZES), 16))


@functools.cache
def initialised(expert):
  # Away from the initial values, where an error in a scale could hide.
  one = Padded(jnp.zeros((len(SIZES), 1, 16)))
  params = nn.unbox(jax.jit(expert.init)(jax.random.key(1), one))['params']
  return jax.tree.map(lambda p: p * 1.5, params)


@functools.partial(jax.jit, static_argnums=0)
def apply(expert, params, rows):
  return expert.apply({'params': params}, rows)


def by_expert(rows):
  """[E, max, D] with zeros behind, and the mask of true rows."""
  starts = np.cumsum((0, *SIZES))
  padded = np.zeros((len(SIZES), max(SIZES), rows.shape[-1]), rows.dtype)
  mask = np.zeros(padded.shape[:2], bool)
  for e, size in enumerate(SIZES):
    padded[e, :size] = rows[starts[e] : starts[e] + size]
    mask[e, :size] = True
  return padded, mask


def test_ragged_rows_equal_padded_rows_with_all_gradients(expert, rows):
  params = initialised(expert)
  _, mask = by_expert(np.asarray(rows))
  place = np.flatnonzero(mask.reshape(-1))
  upstream = jax.random.normal(jax.random.key(2), rows.shape)

  @jax.jit
  def ragged(params, rows):
    r = Ragged(rows, jnp.array(SIZES))
    y, pull = jax.vjp(
      lambda p, x: apply(expert, p, r.replace(rows_RD=x)).rows_RD,
      params,
      rows,
    )
    return y, pull(upstream)

  @jax.jit
  def padded(params, rows):
    def forward(p, x):
      x = jnp.zeros((mask.size, 16)).at[place].set(x)
      y = apply(expert, p, Padded(x.reshape(*mask.shape, 16)))
      return y.rows_ECD.reshape(mask.size, -1)[place]

    y, pull = jax.vjp(forward, params, rows)
    return y, pull(upstream)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
    ragged(params, rows),
    padded(params, rows),
  )


def test_each_expert_sees_its_own_rows_only(expert, rows):
  params = initialised(expert)
  padded, mask = by_expert(np.asarray(rows))
  whole = apply(expert, params, Padded(jnp.asarray(padded)))
  single = expert.clone(num_experts=1)
  for e in range(len(SIZES)):
    own = jax.tree.map(lambda p, e=e: p[e : e + 1], params)
    alone = apply(single, own, Padded(padded[e : e + 1]))
    np.testing.assert_allclose(
      whole.rows_ECD[e][mask[e]],
      alone.rows_ECD[0][mask[e]],
      rtol=1e-5,
      atol=1e-6,
    )


def silu(x):
  return x / (1 + np.exp(-x))


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def glu_formula(p, x):
  return (silu(x @ p['gate']) * (x @ p['up'])) @ p['down']


def mlp_formula(p, x):
  return gelu(x @ p['up']) @ p['down']


@pytest.mark.parametrize(
  'cls,formula', [(experts.Glu, glu_formula), (experts.Mlp, mlp_formula)]
)
def test_experts_equal_their_formula_in_float64(cls, formula, rows):
  module = cls(hidden=12, num_experts=len(SIZES))
  params = initialised(module)
  got = apply(module, params, Ragged(rows, jnp.array(SIZES)))
  wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  owner = np.repeat(np.arange(len(SIZES)), SIZES)
  want = [
    formula(jax.tree.map(lambda p, e=e: p[e], wide), row)
    for e, row in zip(owner, np.asarray(rows, np.float64), strict=True)
  ]
  np.testing.assert_allclose(got.rows_RD, want, rtol=1e-5, atol=1e-6)


def test_activations_keep_the_dtype_of_the_rows(expert, rows):
  params = initialised(expert)
  y = apply(
    expert,
    params,
    Ragged(rows.astype(jnp.bfloat16), jnp.array(SIZES)),
  )
  assert y.rows_RD.dtype == jnp.bfloat16
  exact = apply(expert, params, Ragged(rows, jnp.array(SIZES)))
  error = jnp.abs(y.rows_RD - exact.rows_RD).max()
  assert error < 0.03 * jnp.abs(exact.rows_RD).max()


def test_flops_count_every_matrix_twice_per_row(expert):
  params = initialised(expert)
  numbers = sum(p.size for p in jax.tree.leaves(params)) / len(SIZES)
  assert expert.flops(16) == 2 * numbers
