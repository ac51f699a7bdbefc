"""AdamW, without its learning rate: the chain's schedule owns that."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optax


class Rule(NamedTuple):
  """What one set of parameters gets.

  Attributes:
    direction: of the update, before the learning rate.
    weight_decay: its factor before the learning rate.
    update_norm: `(rows, columns)` of a matrix to the spectral norm of its
      direction, up to a constant.
  """

  direction: optax.GradientTransformation
  weight_decay: float
  update_norm: Callable[[float, float], float]


def aligned_norm(rows: float, columns: float) -> float:
  """Of entries of size 1 that are of one accord: sqrt(rows columns)."""
  return math.sqrt(rows * columns)


@dataclasses.dataclass(frozen=True)
class AdamW:
  """Adam's direction with decoupled weight decay, `m / (sqrt(v) + eps)`.

  Source: arXiv 1711.05101 alg. 2.
  Differs: the decay is multiplied by the whole learning rate, peak included,
  as in optax and torch.

  Raises: ValueError on a decay or moment rate that cannot be.
  """

  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  mu_dtype: Any = None

  def __post_init__(self):
    check_unit('b1', self.b1)
    check_unit('b2', self.b2)
    check_decay(self.weight_decay)

  def label(self, parameter, matrix=None):
    """The rule that updates this parameter: always 'adamw'."""
    if matrix:
      raise ValueError(
        f'{parameter.path} is set to matrix=True, which AdamW does not '
        'distinguish; remove the setting or use optim.Muon.'
      )
    return 'adamw'

  def rules(self, parameters):
    """{label: Rule}."""
    del parameters
    direction = optax.scale_by_adam(
      self.b1, self.b2, self.eps, mu_dtype=self.mu_dtype
    )
    return {'adamw': Rule(direction, self.weight_decay, aligned_norm)}


def check_unit(name, value):
  """Raises: ValueError unless 0 <= value < 1."""
  if not 0 <= value < 1:
    raise ValueError(f'{name}={value} breaks 0 <= {name} < 1; try 0.9.')


def check_decay(value):
  """Raises: ValueError unless the decay is finite and at least 0."""
  if not 0 <= value < float('inf'):
    raise ValueError(
      f'weight_decay={value} is no decay; give a finite number >= 0.'
    )
