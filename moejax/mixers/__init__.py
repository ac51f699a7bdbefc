"""Mixers: `(x_BTD, ctx, state or None) -> (y_BTD, state)`."""

from moejax.mixers import decays, gates, rules, writes
from moejax.mixers.attention import Attention
from moejax.mixers.attention_experts import AttentionExperts
from moejax.mixers.block_routed import BlockRouted
from moejax.mixers.latent import Latent
from moejax.mixers.linear import LinearAttention
from moejax.mixers.state_space import StateSpace

__all__ = [
  'Attention',
  'AttentionExperts',
  'BlockRouted',
  'Latent',
  'LinearAttention',
  'StateSpace',
  'decays',
  'gates',
  'rules',
  'writes',
]
