"""Regex parameter groups: an ordered list, the first match wins."""

import dataclasses
import re
from collections.abc import Mapping

import optax

from moejax.optim import adamw


@dataclasses.dataclass(frozen=True)
class Group:
  """Settings of the parameters that one regex picks.

  `lr_scale` multiplies the learning rate (and with it the decay). It moves in
  equal strides to `lr_scale_end`, if there is one, over `lr_scale_frac` of the
  steps, and stays there, as that of tables does in 2411.12364 and 2508.18756.
  `weight_decay` replaces the optimiser's, for vectors too; `frozen` means no
  update and no optimiser state; `matrix` overrides Muon's own choice; `rows`
  updates only the rows of a memory's table that a step reads, see `rows`.

  Raises: ValueError on a scale or decay that cannot be, or on frozen rows.
  """

  lr_scale: float = 1.0
  weight_decay: float | None = None
  frozen: bool = False
  matrix: bool | None = None
  rows: bool = False
  lr_scale_end: float | None = None
  lr_scale_frac: float = 1.0

  def __post_init__(self):
    for name in ('lr_scale', 'lr_scale_end'):
      scale = getattr(self, name)
      if scale is not None and not 0 <= scale < float('inf'):
        raise ValueError(
          f'{name}={scale} is no scale; give a finite number >= 0.'
        )
    if not 0 < self.lr_scale_frac <= 1:
      raise ValueError(
        f'lr_scale_frac={self.lr_scale_frac} is no part of the steps; give '
        'one above 0, up to 1.'
      )
    if self.weight_decay is not None:
      adamw.check_decay(self.weight_decay)
    if self.frozen and self.rows:
      raise ValueError(
        'frozen=True and rows=True: what is frozen has no rows to update; '
        'remove either.'
      )

  def scale(self, total_steps):
    """The factor of the learning rate: a number, or step -> number."""
    first, last = self.lr_scale, self.lr_scale_end
    if last is None or last == first:
      return first
    return optax.linear_schedule(first, last, self.lr_scale_frac * total_steps)


def assign(paths, groups):
  """{path: Group} for an ordered sequence of (regex, settings).

  The regex is searched for anywhere in the path; anchor it with ^ and $.
  Settings are a `Group` or a mapping of its fields.

  Raises: ValueError for a regex that is malformed or picks nothing, and for
  settings that are not known.
  """
  chosen = dict.fromkeys(paths, Group())
  free = list(paths)
  for pattern, settings in groups:
    group = _group(pattern, settings)
    matched = [path for path in paths if _compile(pattern).search(path)]
    taken = [path for path in matched if path in free]
    if not taken:
      raise ValueError(_nothing(pattern, matched, paths))
    chosen.update(dict.fromkeys(taken, group))
    free = [path for path in free if path not in taken]
  return chosen


def _group(pattern, settings):
  if isinstance(settings, Group):
    return settings
  known = [field.name for field in dataclasses.fields(Group)]
  if not isinstance(settings, Mapping):
    raise ValueError(
      f'Group {pattern!r} has settings {settings!r}; give a mapping of '
      f'{", ".join(known)}.'
    )
  unknown = [name for name in settings if name not in known]
  if unknown:
    raise ValueError(
      f'Group {pattern!r} sets {unknown[0]!r}, which is not known; it may set '
      f'{", ".join(known)}.'
    )
  return Group(**settings)


def _compile(pattern):
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'Group {pattern!r} is no regular expression: {error}.'
    ) from error


def _nothing(pattern, matched, paths):
  if matched:
    return (
      f'Group {pattern!r} picks nothing: earlier groups already hold '
      f'{matched[0]}; move it up, because the first match wins.'
    )
  paths = list(paths)
  spread = paths[:: max(1, len(paths) // 4)][:5]
  return (
    f'Group {pattern!r} matches no parameter; there are {len(paths)} paths, '
    f'such as {", ".join(spread)}.'
  )
