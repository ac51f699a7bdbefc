"""Muon for matrices and batches of matrices, AdamW for everything else."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from moejax.optim import adamw, parameters


@dataclasses.dataclass(frozen=True)
class Muon:
  """Orthogonalised momentum, one matrix at a time.

  Stacks over layers and experts are batches: each matrix of a stack is
  normalised and orthogonalised alone. `heads` and `kv` are flattened into one
  side. Vectors, tables and heads over a vocabulary go to `other`.

  So do parameters whose path matches one of `exclude`. Router scores are
  among them: their columns are one classifier per expert, as in a vocabulary
  head, and equalising the singular values lifts the directions that only a
  few rarely chosen experts see to the size of all others, at every step.
  Short convolutions are there because a depthwise kernel [width, channels] is
  a batch of vectors. `exclude=()` or a group with `matrix=True` undoes it.

  `consistent_rms` scales the update so that its root mean square is about
  that number whatever the shape; at 0.2 AdamW's learning rates carry over.
  None scales by sqrt(max(1, columns / rows)) instead.

  Source: arXiv 2502.16982 eq. 1-4; Newton-Schulz by `optax.contrib`.
  Differs: bias-corrected Nesterov momentum, as in optax.
  Raises: ValueError on a decay, rate or step count that cannot be.
  """

  beta: float = 0.95
  nesterov: bool = True
  ns_steps: int = 5
  eps: float = 1e-8
  weight_decay: float = 0.1
  consistent_rms: float | None = 0.2
  mu_dtype: Any = None
  exclude: Sequence[str] = ('router', 'conv')
  other: adamw.AdamW = dataclasses.field(default_factory=adamw.AdamW)

  def __post_init__(self):
    adamw.check_unit('beta', self.beta)
    adamw.check_decay(self.weight_decay)
    if self.ns_steps < 1:
      raise ValueError(
        f'ns_steps={self.ns_steps} orthogonalises nothing; use 5.'
      )

  def label(self, parameter, matrix=None):
    """'muon' or 'adamw'; `matrix` overrides the choice by axes and path."""
    if matrix and len(parameter.sides) != 2:
      raise ValueError(
        f'{parameter.path} with axes {parameter.names} is set to matrix=True '
        f'but has {len(parameter.sides)} sides besides its batch axes, not '
        '2; name its axes or remove the setting.'
      )
    if matrix is None:
      matrix = parameter.is_matrix and not any(
        re.search(pattern, parameter.path) for pattern in self.exclude
      )
    return 'muon' if matrix else 'adamw'

  def rules(self, found):
    """{label: Rule} for {path: Parameter}."""
    direction = optax.chain(
      optax.contrib.scale_by_muon(
        ns_steps=self.ns_steps,
        beta=self.beta,
        eps=self.eps,
        mu_dtype=self.mu_dtype,
        nesterov=self.nesterov,
        weight_dimension_numbers=lambda tree: _by_path(
          lambda path, _: dimension_numbers(found[path]), tree
        ),
      ),
      optax.stateless(
        lambda updates, _: _by_path(
          lambda path, update: self._gain(*found[path].fans) * update, updates
        )
      ),
    )
    muon = adamw.Rule(direction, self.weight_decay, self._gain)
    return {'muon': muon, **self.other.rules(found)}

  def _gain(self, rows, columns):
    """The spectral norm of an update, as orthogonal matrices have 1."""
    if self.consistent_rms is None:
      return math.sqrt(max(1.0, columns / rows))
    return self.consistent_rms * math.sqrt(max(rows, columns))


def dimension_numbers(parameter):
  """Which axes are rows (reduced) and columns (output); the rest is batch."""
  rows, columns = parameter.sides
  return optax.contrib.MuonDimensionNumbers(rows, columns)


def _by_path(function, tree):
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(parameters.slashed(path), leaf), tree
  )
