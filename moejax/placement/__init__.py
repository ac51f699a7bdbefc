"""Which rank holds which experts: from the load to an order of the experts.

The k-th run of E / P experts of an order is on rank k; `permute` brings a
training state, or parameters alone, into an order.
"""

from moejax.placement.integer import programme
from moejax.placement.pack import loads, pack, replicas
from moejax.placement.permute import inverse, permute

__all__ = ['inverse', 'loads', 'pack', 'permute', 'programme', 'replicas']
