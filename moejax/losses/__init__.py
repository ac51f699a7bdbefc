"""Losses: `(outputs, batch) -> scalar`, raw; the recipe weighs them."""

from moejax.losses.cross_entropy import cross_entropy
from moejax.losses.scored import right_answers, weights_BT

__all__ = ['cross_entropy', 'right_answers', 'weights_BT']
