"""What both sides compute: inputs of a layer, and the skew of its routing."""

import dataclasses
import pathlib
import sys

import numpy as np

# The other side's Python need not have moejax installed.
sys.path.append(str(pathlib.Path(__file__).parents[2]))
from pallas_kernels.expert_ffn.shapes import (  # noqa: E402
  HOST,
  HOST_FINE_GRAINED,
  Layer,
)

SHAPES = (*HOST.values(), *HOST_FINE_GRAINED.values())
SKEWS = ('even', 'zipf')


def text(shape: Layer) -> str:
  """T,d,n,E,K."""
  return ','.join(map(str, dataclasses.astuple(shape)))


def shape(text: str) -> Layer:
  return Layer(*map(int, text.split(',')))


def flops(shape: Layer) -> float:
  """Of the useful products, forward and backward, router included."""
  router = 6 * shape.tokens * shape.d * shape.experts
  return shape.flops() + shape.flops(backward=True) + router


def arrays(shape: Layer, skew: str) -> dict[str, np.ndarray]:
  """x, dy [T, d], router [d, E], gate and up [E, d, n], down [E, n, d], f32.

  The first channel of x is 1, so that the router's first row is a bias per
  expert: 0, or minus the logarithm of a random rank (Zipf's law). No token is
  so near a tie that rounding could decide which experts it goes to.
  """
  draw = np.random.default_rng(0)
  t, d, n, e = shape.tokens, shape.d, shape.n, shape.experts

  def normal(*size, fan=1):
    return (draw.normal(size=size) / fan**0.5).astype(np.float32)

  router = normal(d, e, fan=d)
  router[0] = -np.log1p(draw.permutation(e)) if skew == 'zipf' else 0
  x, near = np.empty((t, d), np.float32), np.ones(t, bool)
  while near.any():
    x[near] = normal(near.sum(), d)
    x[:, 0] = 1
    near = _margin(x, router, shape.k) < 1e-4
  return dict(
    x=x,
    dy=normal(t, d),
    router=router,
    gate=normal(e, d, n, fan=d),
    up=normal(e, d, n, fan=d),
    down=normal(e, n, d, fan=n),
  )


def _margin(x, router, k):
  """f64 [T]: by how much the last chosen logit exceeds the next one."""
  logits = np.sort(x.astype(np.float64) @ router, axis=1)
  return logits[:, -k] - logits[:, -k - 1]
