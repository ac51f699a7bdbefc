"""Dispatch: `(assignment, x_ND, experts) -> y_ND`, each saying what it
`accepts`."""

from moejax.dispatch.einsum import Einsum
from moejax.dispatch.mask import Mask
from moejax.dispatch.sort import Sort

__all__ = ['Einsum', 'Mask', 'Sort']
