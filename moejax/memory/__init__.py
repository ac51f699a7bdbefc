"""Memory layers, `(x_BTD, ctx) -> y_BTD`, for where a feed-forward fits."""

from moejax.memory import tables
from moejax.memory.expanded import Expanded
from moejax.memory.horizontal_vertical import Horizontal, Vertical
from moejax.memory.product_key import GatedProductKey, ProductKey
from moejax.memory.single_neuron import SingleNeuron
from moejax.memory.tucker import Tucker

__all__ = [
  'Expanded',
  'GatedProductKey',
  'Horizontal',
  'ProductKey',
  'SingleNeuron',
  'Tucker',
  'Vertical',
  'tables',
]
