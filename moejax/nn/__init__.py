"""Pieces that several slots share."""

from moejax.nn import activations
from moejax.nn.norm import RmsNorm, rms_norm
from moejax.nn.projection import (
  Projection,
  contract,
  expert_matrix,
  matrix_init,
)
from moejax.nn.rope import rotate
from pallas_kernels.attention.masked import attend

__all__ = [
  'Projection',
  'RmsNorm',
  'activations',
  'attend',
  'contract',
  'expert_matrix',
  'matrix_init',
  'rms_norm',
  'rotate',
]
