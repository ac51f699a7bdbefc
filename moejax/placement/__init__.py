"""Which rank holds which experts: from the load to an order of the experts.

The k-th run of E / P experts of an order is on rank k; `permute` brings a
training state, or parameters alone, into an order, and `resize` brings a live
state onto more or fewer devices.
"""

from moejax.placement.integer import programme
from moejax.placement.pack import loads, pack, pack_nodes, replicas
from moejax.placement.permute import inverse, permute
from moejax.placement.resize import Resized, resize, stay

__all__ = [
  'Resized',
  'inverse',
  'loads',
  'pack',
  'pack_nodes',
  'permute',
  'programme',
  'replicas',
  'resize',
  'stay',
]
