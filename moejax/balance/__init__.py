"""Balance: `(assignment, ctx) -> scalar`, raw; the recipe weighs it."""

from moejax.balance.bias_update import bias_update, end_step
from moejax.balance.load import GlobalBatch, load, per_sequence
from moejax.balance.z import z

__all__ = [
  'GlobalBatch',
  'bias_update',
  'end_step',
  'load',
  'per_sequence',
  'z',
]
