"""Mixers: `(x_BTD, ctx, state or None) -> (y_BTD, state)`."""

from moejax.mixers.attention import Attention

__all__ = ['Attention']
