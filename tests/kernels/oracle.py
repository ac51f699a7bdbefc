"""Inputs for the kernels of experts, and what they must give, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.grouped_matmul.shapes import Shape


def assert_close(got, want, tolerance):
  """Trees of arrays, to `tolerance` of each one's largest number, or of 1."""
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = max(1.0, np.abs(b).max(initial=0))
    a = np.asarray(a, np.float64)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def product_inputs(shape: Shape, dtype=jnp.float32, poison=True):
  """Rows, matrices, sizes and an output gradient; rows of no group hold NaN."""
  draw = np.random.default_rng(0).normal
  x = draw(size=(shape.rows, shape.d))
  w = draw(size=(len(shape.sizes), shape.d, shape.f))
  dy = draw(size=(shape.rows, shape.f))
  if poison:
    dead = sum(shape.sizes)
    x[dead:] = dy[dead:] = np.nan
  sizes = jnp.array(shape.sizes, jnp.int32)
  return *(jnp.asarray(a, dtype) for a in (x, w)), sizes, jnp.asarray(dy, dtype)


def product(x, w, sizes, dy):
  """y, dx and dw by a loop over groups."""
  x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
  y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
  start = 0
  for e, size in enumerate(np.asarray(sizes)):
    own = slice(start, start + size)
    y[own], dx[own] = x[own] @ w[e], dy[own] @ w[e].T
    dw[e] = x[own].T @ dy[own]
    start += size
  return y, dx, dw


def relu_squared(x):
  return jnp.square(jax.nn.relu(x))


def layer_inputs(shape, dtype=jnp.float32, gated=True, ids=None):
  """(x, gate, up, down, weights), ids and dy of N, D, F, E, K.

  Ids repeat within a token, and E ("no expert") is among them.
  """
  n, d, f, e, k = shape
  rng = np.random.default_rng(0)

  def draw(*size):
    return jnp.asarray(rng.normal(size=size), dtype)

  x, gate, up = draw(n, d), draw(e, d, f), draw(e, d, f) if gated else None
  down, dy = draw(e, f, d), draw(n, d)
  weights = jnp.asarray(rng.normal(size=(n, k)), jnp.float32)
  if ids is None:
    ids = rng.integers(0, e + 1, size=(n, k))
  return (x, gate, up, down, weights), jnp.asarray(ids, jnp.int32), dy


def layer(args, ids, dy, activation):
  """y and the gradients of all arguments; tokens of no expert may hold NaN."""
  with jax.enable_x64(True):
    args, dy = jax.tree.map(lambda a: np.asarray(a, np.float64), (args, dy))
    found = _layer(args, np.asarray(ids), dy, activation)
    return jax.tree.map(np.asarray, found)


@functools.partial(jax.jit, static_argnums=3)
def _layer(args, ids, dy, activation):
  """A loop over experts, each on every token."""
  experts = args[1].shape[0]

  def y(x, gate, up, down, weights):
    def add(y, expert):
      e, gate, up, down = expert
      own = ids == e
      x_own = jnp.where(own.any(1)[:, None], x, 0)
      h = activation(x_own @ gate)
      h = h if up is None else h * (x_own @ up)
      weight = jnp.where(own, weights, 0).sum(1)
      return y + weight[:, None] * (h @ down), None

    matrices = jnp.arange(experts), gate, up, down
    return jax.lax.scan(add, jnp.zeros_like(x), matrices)[0]

  value, pull = jax.vjp(y, *args)
  live = ((ids >= 0) & (ids < experts)).any(1)[:, None]
  return value, *pull(jnp.where(live, dy, 0))
