"""Maximal update parametrisation: a learning rate that holds at every width."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from moejax.optim import parameters
from moejax.optim.adamw import Rule
from moejax.optim.parameters import Parameter


@dataclasses.dataclass(frozen=True)
class MaximalUpdate:
  """What changes with the width, so that features move alike at all widths.

  At `base_width` nothing changes. At r times that width, in a model whose
  other sizes grow in proportion (heads, not their size; the hidden width of
  experts, not their number):

  | parameter, rows to columns | start | Adam | Muon, consistent RMS |
  |---|---|---|---|
  | hidden: projections, experts | 1 | 1 / r | r^-1/2 |
  | output: router, gates of fixed size | r^-1/2 | 1 / r | 1 / r |
  | input: low ranks to the width, filters | 1 | 1 | 1 |
  | embedding and head | 1 | r^-1/2 | as Adam |
  | vectors | 1 | 1 | as Adam |

  and the logits are multiplied by r^-1/2. The columns are factors of the
  initial values and of the learning rate. Both optimisers follow one rule: an
  update has a spectral norm in proportion to sqrt(columns / rows).

  Source: 2203.03466 tables 3 and 8 (a head that may be tied: a multiplier);
  2310.17813 condition 1 (the rule for any optimiser); 2508.09752 (an expert is
  a hidden layer, the router an output).
  Differs: initial values and learning rates already fall with the fan-in as
  the modules have it, of which only the ratio to the base is left; the model
  multiplies embeddings by the root of the width, hence r^-1/2 for theirs. The
  scale of attention is left at head_dim^-1/2: keep head_dim. The weight decay
  is multiplied by the learning rate, as everywhere, and falls with it.
  Holds while the tokens of a batch are few beside the width: the update of
  many tokens that have little in common is nearer to a random matrix, and moves
  features by up to r^-1/2 less (`test_features_move_alike_in_width`).

  Attributes:
    base_width: of the model that learning rates are tuned for.
    grows: logical axes whose size is in proportion to the width.

  Raises: ValueError on a base that is no width.
  """

  base_width: int
  grows: Sequence[str] = ('embed', 'heads', 'latent', 'mlp')

  def __post_init__(self):
    if self.base_width < 1:
      raise ValueError(
        f'base_width={self.base_width} is no width; give that of the model '
        'whose learning rate was tuned, such as 64.'
      )

  def logits_scale(self, width: int) -> float:
    """The factor of the logits."""
    return (self.base_width / width) ** 0.5

  def init_scale(self, parameter: Parameter, width: int) -> float:
    """The factor of the initial values."""
    if not parameter.is_matrix:
      return 1.0
    rows, columns = self._growth(parameter, width)
    return rows**-0.5 if columns == 1 else 1.0

  def lr_scale(self, parameter: Parameter, rule: Rule, width: int) -> float:
    """The factor of the learning rate.

    Args:
      parameter: at the width that is trained.
      rule: what updates it; `update_norm` is read.
      width: that is trained.
    """
    if 'vocab' in parameter.names:
      return (self.base_width / width) ** 0.5
    if parameter.is_vector or len(parameter.sides) != 2:
      return 1.0
    grown = parameter.fans
    base = [
      n / times
      for n, times in zip(grown, self._growth(parameter, width), strict=True)
    ]

    def due(rows, columns):
      return math.sqrt(columns / rows) / rule.update_norm(rows, columns)

    return due(*grown) / due(*base)

  def initial(self, params: Any, names: Any, width: int) -> Any:
    """The parameters at the start of training.

    Args:
      params: as the modules made them.
      names: the parallel tree of logical axis names.
      width: of the model.
    """
    found = parameters.collect(params, names)

    def scaled(path, leaf):
      scale = self.init_scale(found[parameters.slashed(path)], width)
      return leaf if scale == 1.0 else scale * leaf

    return jax.tree_util.tree_map_with_path(scaled, params)

  def _growth(self, parameter, width):
    """How many times the base each side is."""
    ratio = width / self.base_width
    return [
      ratio if {parameter.names[axis] for axis in side} & set(self.grows) else 1
      for side in parameter.sides
    ]
