"""What both sides compute: inputs of a chunked delta rule."""

import pathlib
import sys

import numpy as np

# The other side's Python need not have moejax installed.
sys.path.append(str(pathlib.Path(__file__).parents[2]))
from pallas_kernels.chunked.shapes import HOST, Shape  # noqa: E402

SHAPES = tuple(HOST.values())
# The decay of each operation: per channel or per head.
DECAYS = ('channel', 'head')


def text(shape: Shape) -> str:
  """B,T,H,D."""
  return f'{shape.B},{shape.T},{shape.H},{shape.K}'


def shape(text: str) -> Shape:
  B, T, H, D = map(int, text.split(','))
  return Shape(B, T, H, D, H, D)


def arrays(shape: Shape, decay: str) -> dict[str, np.ndarray]:
  """q, k, v, dy [B, T, H, D], log_decay and beta, f32.

  Queries and keys have norm 1, as the layers make them; log decays are those
  of sigmoids that are mostly near 1.
  """
  draw = np.random.default_rng(0)
  lead = shape.B, shape.T, shape.H

  def normal(*size):
    return draw.normal(size=size).astype(np.float32)

  def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  gates = normal(*lead, *([shape.K] if decay == 'channel' else []))
  return dict(
    q=unit(normal(*lead, shape.K)),
    k=unit(normal(*lead, shape.K)),
    v=normal(*lead, shape.V),
    log_decay=-np.log1p(np.exp(-gates - 2)),
    beta=1 / (1 + np.exp(-normal(*lead))),
    dy=normal(*lead, shape.V),
  )
