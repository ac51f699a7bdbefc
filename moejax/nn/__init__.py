"""Pieces that several slots share."""

from moejax.nn import activations
from moejax.nn.attend import attend
from moejax.nn.norm import RmsNorm, rms_norm
from moejax.nn.projection import (
  Projection,
  contract,
  expert_matrix,
  matrix_init,
)
from moejax.nn.rope import rotate

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
