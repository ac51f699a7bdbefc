"""Mixers: `(x_BTD, ctx, state or None) -> (y_BTD, state)`."""

from moejax.mixers import decays, gates, rules
from moejax.mixers.attention import Attention
from moejax.mixers.linear import LinearAttention
from moejax.mixers.memories import MixtureOfMemories
from moejax.mixers.state_space import StateSpace

__all__ = [
  'Attention',
  'LinearAttention',
  'MixtureOfMemories',
  'StateSpace',
  'decays',
  'gates',
  'rules',
]
