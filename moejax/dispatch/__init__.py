"""Dispatch: `(assignment, x_ND, experts) -> y_ND`, each saying what it
`accepts`. `Ring`, the all-to-alls and `TwoHops` exchange tokens between devices
by hand, the others leave that to the compiler. `Hashed` lets like ones travel
as one."""

from moejax.dispatch.all_to_all import AllToAll
from moejax.dispatch.einsum import Einsum
from moejax.dispatch.hashed import Hashed
from moejax.dispatch.mask import Mask
from moejax.dispatch.ragged import RaggedAllToAll
from moejax.dispatch.ring import Ring
from moejax.dispatch.sort import Sort
from moejax.dispatch.two_hops import TwoHops

__all__ = [
  'AllToAll',
  'Einsum',
  'Hashed',
  'Mask',
  'RaggedAllToAll',
  'Ring',
  'Sort',
  'TwoHops',
]
