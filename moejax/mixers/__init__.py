"""Mixers: `(x_BTD, ctx, state or None) -> (y_BTD, state)`."""

from moejax.mixers.attention import Attention
from moejax.mixers.latent import Latent

__all__ = ['Attention', 'Latent']
