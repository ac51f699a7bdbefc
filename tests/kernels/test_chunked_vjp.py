"""Gradients of an operation whose implementations keep different things."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.chunked.vjp import Implementation, Which, differentiable

LARGE = (1024, 513)


def _cube(keeps, platforms=None):
  """x^3 by an implementation that keeps x^2 and what `keeps` makes of x."""

  def forward(x, *, scale, keep):
    return scale * x**3, (x**2, keeps(x)) if keep else ()

  def shapes(x, *, scale):
    return jax.eval_shape(lambda x: (x**2, keeps(x)), x)

  def backward(args, kept, d_out, *, scale):
    return (3 * scale * kept[0] * d_out,)

  return Implementation(forward, shapes, backward, platforms)


TABLE = {
  'far': _cube(lambda x: jnp.ones(LARGE) * x.sum(), platforms=('tpu',)),
  'near': _cube(lambda x: x[:1]),
}


def _op(x, implementation=None):
  which = Which('cube', tuple(TABLE.items()), implementation, (('scale', 2.0),))
  return differentiable(which, x)


def test_what_another_platform_would_keep_takes_no_memory():
  def layers(x):
    # Over layers, whose residuals are stacked.
    y, _ = jax.lax.scan(lambda x, _: (_op(x), None), x, length=3)
    return jnp.sum(y)

  x = jnp.asarray([0.5, 0.6])
  compiled = jax.jit(jax.grad(layers)).lower(x).compile()
  # 2 (2 (2 x^3)^3)^3 = 2^13 x^27.
  np.testing.assert_allclose(compiled(x), 2**13 * 27 * x**26, rtol=1e-5)
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * np.prod(LARGE)


def test_gradient_is_that_of_the_implementation_named_and_outside_of_jit():
  x = jnp.asarray([0.5, 2.0])
  for name in (None, 'near'):
    got = jax.grad(lambda x, name=name: _op(x, name).sum())(x)
    np.testing.assert_allclose(got, 6 * x**2, rtol=1e-6)
