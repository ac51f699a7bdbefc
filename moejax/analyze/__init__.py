"""What a trained model does: read from it, never changing it."""

from moejax.analyze import attention, memory, routing

__all__ = ['attention', 'memory', 'routing']
