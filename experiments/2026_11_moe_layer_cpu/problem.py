"""What both sides compute: shapes, inputs and the skew of their routing."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
  """T tokens of width d; E experts of width n, K of them chosen."""

  tokens: int
  width: int
  hidden: int
  experts: int
  k: int

  @property
  def flops(self) -> float:
    """Of the useful products, forward and backward, router included."""
    pairs = self.tokens * self.k
    return (
      18 * pairs * self.width * self.hidden
      + 6 * self.tokens * self.width * self.experts
    )


SHAPES = (
  Shape(4096, 256, 128, 64, 8),
  Shape(4096, 256, 512, 8, 2),
  Shape(8192, 512, 256, 64, 8),
)
SKEWS = ('even', 'zipf')


def shape(text: str) -> Shape:
  """The inverse of `','.join(map(str, dataclasses.astuple(shape)))`."""
  return Shape(*map(int, text.split(',')))


def arrays(shape: Shape, skew: str) -> dict[str, np.ndarray]:
  """x, dy [T, d], router [d, E], gate and up [E, d, n], down [E, n, d], f32.

  The first channel of x is 1, so that the router's first row is a bias per
  expert: none worth the name, or minus the logarithm of a random rank.
  """
  draw = np.random.default_rng(0)
  t, d, n, e = shape.tokens, shape.width, shape.hidden, shape.experts

  def normal(*size, fan=1):
    return (draw.normal(size=size) / fan**0.5).astype(np.float32)

  x, router = normal(t, d), normal(d, e, fan=d)
  x[:, 0] = 1
  router[0] = -np.log1p(draw.permutation(e)) if skew == 'zipf' else 0
  return dict(
    x=x,
    dy=normal(t, d),
    router=router,
    gate=normal(e, d, n, fan=d),
    up=normal(e, d, n, fan=d),
    down=normal(e, n, d, fan=n),
  )
