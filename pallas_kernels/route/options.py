"""What a router can ask of the fused selection (static)."""

from __future__ import annotations

import dataclasses

AFFINITIES = (None, 'softmax', 'sigmoid')
WEIGHTS = ('softmax', 'sigmoid', 'raw')


@dataclasses.dataclass(frozen=True)
class Groups:
  """Selection within the best groups of neighbouring experts.

  Attributes:
    num_groups: groups that the experts are cut into.
    kept_groups: groups that a token may use.
    best_per_group: affinities that make a group's score.
  """

  num_groups: int
  kept_groups: int
  best_per_group: int = 2


@dataclasses.dataclass(frozen=True)
class Options:
  """See `api.top_k_route`."""

  experts: int
  k: int
  affinity: str | None
  groups: Groups | None
  weigh: str
  normalise: bool
  scale: float

  @property
  def shares(self) -> bool:
    """Whether weights are shares of the softmax over all experts."""
    return self.weigh == 'softmax' and not self.normalise


def check(options: Options, logits_NE, bias_E, valid_N) -> None:
  """Refuses what does not fit together.

  Raises:
    ValueError: with the values, the rule and the fix.
  """
  if logits_NE.ndim != 2 or str(logits_NE.dtype) != 'float32':
    raise ValueError(
      f'top_k_route takes f32 logits [N, E], not {logits_NE.dtype} '
      f'{logits_NE.shape}; cast or reshape them.'
    )
  n, experts = logits_NE.shape
  if not 1 <= options.k <= experts:
    raise ValueError(
      f'top_k_route: k={options.k} must be at least 1 and at most the '
      f'{experts} experts.'
    )
  if options.scale == 0:
    raise ValueError('top_k_route: scale=0 makes every weight zero.')
  for name, a, shape in (
    ('bias', bias_E, (experts,)),
    ('valid', valid_N, (n,)),
  ):
    if a is not None and a.shape != shape:
      raise ValueError(
        f'top_k_route: {name} has shape {a.shape}; with logits '
        f'{logits_NE.shape} it must have {shape}.'
      )
  for name, value, known in (
    ('affinity', options.affinity, AFFINITIES),
    ('weighing', options.weigh, WEIGHTS),
  ):
    if value not in known:
      raise ValueError(
        f'top_k_route: {name}={value!r} is unknown; use '
        f'{" or ".join(map(repr, known))}.'
      )
  if options.groups is not None:
    _check_groups(options.groups, options.k, experts)


def _check_groups(groups, k, experts):
  if experts % groups.num_groups:
    raise ValueError(
      f'num_groups={groups.num_groups} does not divide the {experts} experts; '
      'choose a divisor.'
    )
  size = experts // groups.num_groups
  fits = k <= groups.kept_groups * size
  if not fits or not groups.kept_groups <= groups.num_groups:
    raise ValueError(
      f'kept_groups={groups.kept_groups} of {groups.num_groups} groups of '
      f'{size} experts cannot give k={k} experts; keep at least '
      f'{-(-k // size)} groups and at most all.'
    )
  if groups.best_per_group < 1:
    raise ValueError(
      f'best_per_group={groups.best_per_group} must be at least 1.'
    )
