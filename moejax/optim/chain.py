"""The whole optimiser: guard, clip, direction, decay, learning rate."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from moejax.optim import clip, groups, guard, parameters, rows, schedules
from moejax.optim.adamw import AdamW

FROZEN = 'frozen'


@dataclasses.dataclass(frozen=True)
class Chain:
  """An optimiser with its schedule, clipping and parameter groups.

  `optimizer` is an `AdamW`, a `Muon` or anything with their `label` and
  `rules`. `schedule` is called with `total_steps` unless it has its own.
  `clip_norm` bounds the global norm of the gradients that are not frozen;
  None is off. `groups` is a sequence of (regex, settings), see `groups`.

  Vectors (norm scales, biases) have no weight decay unless a group says so.

  Raises: ValueError on a `clip_norm` that is not positive.
  """

  optimizer: Any = dataclasses.field(default_factory=AdamW)
  schedule: Callable = functools.partial(schedules.cosine, peak=1e-3)
  clip_norm: float | None = 1.0
  groups: Sequence = ()

  def __post_init__(self):
    if self.clip_norm is not None and not self.clip_norm > 0:
      raise ValueError(
        f'clip_norm={self.clip_norm} would clip everything; give a number '
        '> 0, or None to not clip.'
      )

  def learning_rate(self, total_steps):
    """The optax schedule: number of steps taken -> learning rate.

    Skipped steps do not count: ask for `step - state.skipped`.
    """
    bound = getattr(self.schedule, 'keywords', {})
    accepts = 'total_steps' in inspect.signature(self.schedule).parameters
    if accepts and bound.get('total_steps') is None:
      return self.schedule(total_steps=total_steps)
    return self.schedule()

  def transformation(self, params, names=None, *, total_steps, lr_scale=None):
    """The `SkipNonfinite` transformation for these parameters.

    `params` is a tree of arrays or `jax.ShapeDtypeStruct`; `names` is the
    parallel tree of logical axis tuples. `lr_scale` gives a factor of the
    learning rate, `(parameter, rule) -> factor`, on top of that of its group;
    `None` is 1. Train with `params, state = tx.step(grads, state, params,
    loss)`.

    Raises: ValueError for a group that picks nothing, unknown settings, rows
    of what is no table, or names that do not fit the parameters.
    """
    found = parameters.collect(params, names)
    chosen = groups.assign(found, self.groups)
    labels = {path: self._label(found[path], chosen[path]) for path in found}
    rules = self.optimizer.rules(found)
    decays = {
      path: _decay(found[path], chosen[path], rules.get(labels[path]))
      for path in found
    }
    scales = {path: chosen[path].scale(total_steps) for path in found}
    if lr_scale is not None:
      for path, label in labels.items():
        if label != FROZEN:
          by = lr_scale(found[path], rules[label])
          scales[path] = _times(scales[path], by)
    like = functools.partial(_like, params)
    moving = {path: label != FROZEN for path, label in labels.items()}
    steps = [
      optax.identity()
      if self.clip_norm is None
      else clip.clip_by_global_norm(self.clip_norm, like(moving)),
      _directions(rules, like(labels)),
      _add_decay(like(decays)),
      optax.scale_by_learning_rate(self.learning_rate(total_steps)),
      _scale(like(scales)),
    ]
    tables = tuple(path for path in found if chosen[path].rows)
    for path in tables:
      rows.check(found[path], labels[path])
    return guard.SkipNonfinite(optax.chain(*steps), tables)

  def _label(self, parameter, group):
    if group.frozen:
      return FROZEN
    return self.optimizer.label(parameter, group.matrix)


def _decay(parameter, group, rule):
  if rule is None:
    return 0.0
  if group.weight_decay is not None:
    return group.weight_decay
  return 0.0 if parameter.is_vector else rule.weight_decay


def _directions(rules, labels):
  used = set(jax.tree.leaves(labels))
  moving = {
    label: rule.direction for label, rule in rules.items() if label in used
  }
  if FROZEN in used:
    moving[FROZEN] = optax.set_to_zero()
  return optax.partition(moving, labels)


def _add_decay(decays):
  if not any(jax.tree.leaves(decays)):
    return optax.identity()

  def add(updates, params):
    return jax.tree.map(
      lambda update, param, decay: update + decay * param if decay else update,
      updates,
      params,
      decays,
    )

  return optax.stateless(add)


def _times(scale, by):
  return (lambda step: by * scale(step)) if callable(scale) else by * scale


def _scale(scales):
  """Multiplies by numbers, or by functions of the number of steps taken."""
  if all(scale == 1.0 for scale in jax.tree.leaves(scales)):
    return optax.identity()

  def scaled(updates, step=None):
    return jax.tree.map(
      lambda update, s: (s(step) if callable(s) else s) * update,
      updates,
      scales,
    )

  if not any(map(callable, jax.tree.leaves(scales))):
    return optax.stateless(lambda updates, _: scaled(updates))

  def update(updates, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    return scaled(updates, state.count), optax.ScaleByScheduleState(count)

  return optax.GradientTransformation(
    lambda _: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)), update
  )


def _like(params, by_path):
  return jax.tree_util.tree_map_with_path(
    lambda path, _: by_path[parameters.slashed(path)], params
  )
