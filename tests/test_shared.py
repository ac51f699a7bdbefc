"""Modules that layers share: one set of parameters, gradients that add up."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import accounting, state
from moejax.blocks import PreNorm
from moejax.mixers import Attention
from moejax.model import Model

pytestmark = pytest.mark.usefixtures('quick_compilation')
D, LAYERS = 16, 4


class Kernel(nn.Module):
  """x W, which layers may share."""

  slots = D

  @nn.compact
  def __call__(self, x):
    shape = (x.shape[-1], D)
    init = nn.with_logical_partitioning(nn.initializers.normal(), (None, None))
    return x @ self.param('kernel', init, shape)

  def example(self, width):
    return (jnp.zeros((1, width)),)


class Turned(nn.Module):
  """A feed-forward that differs between layers: tanh(x W + layer)."""

  kernel: nn.Module | None = None

  @nn.compact
  def __call__(self, x_BTD, ctx):
    kernel = self.kernel or ctx.shared['kernel']
    return jnp.tanh(kernel(x_BTD) + ctx.layer)

  def rows_read(self):
    return {} if self.kernel else {'kernel': 3}


def model(ffn, shared, **fields):
  block = PreNorm(mixer=Attention(heads=2, kv_heads=1), ffn=ffn)
  return Model(
    vocab=32,
    width=D,
    blocks={'block': block},
    pattern=('block',),
    repeats=2,
    prefix=('block',),
    suffix=('block',),
    shared=shared,
    **fields,
  )


def by_hand(params):
  """The same with a copy of the shared kernel in each layer."""
  own = {k: v for k, v in params.items() if k != 'shared_kernel'}
  kernel = params['shared_kernel']['kernel']
  for group in ('before', 'layers', 'after'):
    block = dict(own[group]['blocks_0'])
    copies = jnp.stack([kernel] * 2) if group == 'layers' else kernel
    block['ffn'] = {'kernel': {'kernel': copies}}
    own[group] = {'blocks_0': block}
  return own


@pytest.fixture(
  scope='module', params=[None, pytest.param('full', marks=pytest.mark.slow)]
)
def pair(request, small):
  """((value, gradients) shared, the same with a kernel of each layer)."""
  ctx = small.context(small.rows(0, padding=(2, 0)))
  shared = model(Turned(), {'kernel': Kernel()}, remat=request.param)
  params = nn.unbox(jax.jit(shared.init)(jax.random.key(0), ctx))['params']

  def loss(one):
    def total(params):
      hidden = one.apply({'params': params}, ctx)[0].hidden_BTD
      return (hidden * jnp.cos(jnp.arange(D))).sum()

    return jax.jit(jax.value_and_grad(total))

  own = model(Turned(Kernel()), {})
  return loss(shared)(params), loss(own)(by_hand(params)), params


def test_layers_that_share_equal_layers_with_copies_of_it(pair):
  (value, grads), (want, copies), _ = pair
  np.testing.assert_allclose(value, want, rtol=1e-5)
  mixer = ('layers', 'blocks_0', 'mixer', 'query', 'kernel')
  a, b = grads, copies
  for key in mixer:
    a, b = a[key], b[key]
  np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_sum_over_the_layers(pair):
  (_, grads), (_, copies), _ = pair
  total = sum(
    np.asarray(copies[group]['blocks_0']['ffn']['kernel']['kernel'])
    .reshape(-1, D, D)
    .sum(0)
    for group in ('before', 'layers', 'after')
  )
  got = grads['shared_kernel']['kernel']
  np.testing.assert_allclose(got, total, rtol=1e-4, atol=1e-5)
  assert np.abs(total).max() > 0.1


def test_a_shared_parameter_is_listed_and_counted_once():
  one = model(Turned(), {'kernel': Kernel()})
  rows = {row.path: row for row in accounting.parameter_rows(one)}
  kernels = [path for path in rows if path.startswith('shared')]
  assert kernels == ['shared_kernel/kernel']
  assert rows['shared_kernel/kernel'].shape == (D, D)
  assert not any('ffn/' in path for path in rows)
  # Four layers read three of its sixteen rows each.
  assert rows['shared_kernel/kernel'].active_count == D * D * 12 / 16


def test_prefill_and_decode_equal_the_full_forward(small, pair):
  params = {'params': pair[2]}
  one = model(Turned(), {'kernel': Kernel()})
  ctx = small.context(small.rows(1, length=6))
  apply = jax.jit(one.apply)
  full = apply(params, ctx)[0].hidden_BTD
  cache, parts = one.init_state(2, 6), []
  for own in (slice(0, 4), slice(4, 5), slice(5, 6)):
    part = jax.tree.map(lambda a, own=own: a[:, own], ctx)
    outputs, cache = apply(params, part, cache)
    parts.append(outputs.hidden_BTD)
  np.testing.assert_allclose(
    jnp.concatenate(parts, 1), full, rtol=1e-4, atol=1e-5
  )


def test_variables_of_shared_modules_keep_their_axis_names():
  _, names = state.abstract_variables(model(Turned(), {'kernel': Kernel()}))
  assert names['params']['shared_kernel']['kernel'] == (None, None)
