"""Rules: one step `(S, inputs_t) -> (S, y_t)` of a linear recurrence.

The state S is [..., G, K, V], a matrix per value head; rows are keys.
"""

from moejax.mixers.rules.delta import delta, gated_delta, kda
from moejax.mixers.rules.linear import gla, lightning, retention, ssd

__all__ = [
  'delta',
  'gated_delta',
  'gla',
  'kda',
  'lightning',
  'retention',
  'ssd',
]
