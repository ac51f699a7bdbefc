"""Mixers: `(x_BTD, ctx, state or None) -> (y_BTD, state)`."""

from moejax.mixers import gates
from moejax.mixers.attention import Attention
from moejax.mixers.attention_experts import AttentionExperts
from moejax.mixers.block_routed import BlockRouted
from moejax.mixers.latent import Latent

__all__ = ['Attention', 'AttentionExperts', 'BlockRouted', 'Latent', 'gates']
