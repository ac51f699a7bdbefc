"""Losses: `(outputs, batch) -> scalar`, raw; the recipe weighs them."""

from moejax.losses.cross_entropy import cross_entropy

__all__ = ['cross_entropy']
