"""What a trained model does: read from it, never changing it."""

from moejax.analyze import attention, routing

__all__ = ['attention', 'routing']
