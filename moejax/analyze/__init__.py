"""What a trained model does: read from it, never changing it."""

from moejax.analyze import routing

__all__ = ['routing']
