"""The exchange of a step, chosen between steps by the load that was measured.

All choices have one layout of parameters and batches, so that going from one to
another moves nothing and changes no result but in rounding; each has a compiled
step of its own, made when it is first used.
"""

from __future__ import annotations

import bisect
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from moejax import config_io, fields, host
from moejax.parts import Parts


class Adaptive:
  """For each range of the load, the choice that was fastest in it.

  The load is the most that an expert has over the mean, of the layer where that
  is most. As long as a range has choices that were not tried in it, these come
  in turn.  Source: 2206.03382, the idea of choices by load.
  Differs: exchanges that gather tokens, send rows, and how many stages they
  have; experts are not cut in other ways. Times are measured, never modelled.

  A run depends on what its machine was doing, by rounding alone.

  That results are equal holds for choices that drop nothing, or alike.

  Attributes:
    choices: dispatches by name, tried in the order of their names.
    edges: where ranges of the load end, ascending.
    every_steps: between decisions.
    timed_steps: of these, the last, of which the time is taken; only for them
      does the host wait for the devices.
  """

  def __init__(
    self,
    choices: Mapping[str, nn.Module],
    edges: Sequence[float] = (1.5, 2.5),
    every_steps: int = 10,
    timed_steps: int = 2,
  ):
    if not choices:
      raise ValueError('choices={} leaves nothing to choose; name dispatches.')
    if not 1 <= timed_steps <= every_steps:
      raise ValueError(
        f'timed_steps={timed_steps} must be from 1 to every_steps='
        f'{every_steps}, the steps of which they are the last.'
      )
    if list(edges) != sorted(set(edges)):
      raise ValueError(f'edges={tuple(edges)} must ascend.')
    self.choices = tuple(sorted(choices))
    self.edges = tuple(edges)
    self.every_steps = every_steps
    self.timed_steps = timed_steps
    self.now = self.choices[0]
    self.seconds: dict[int, dict[str, float]] = {}  # by range and choice

  def decide(self, load: float, seconds: float) -> str:
    """The choice from now on.

    Args:
      load: what was measured last.
      seconds: of a step by the choice so far; the newest is what counts.
    """
    known = self.seconds.setdefault(bisect.bisect(self.edges, load), {})
    known[self.now] = seconds
    untried = [name for name in self.choices if name not in known]
    self.now = untried[0] if untried else min(known, key=known.__getitem__)
    return self.now


class Steps:
  """A train step `(state, batch) -> (state, metrics)` that adapts.

  The metrics have `exchange_choice` too, the place of the choice that was used.

  Attributes:
    parts: of the config, by the name of each choice.
    compiled: the programs made so far, likewise.
  """

  def __init__(self, parts: Parts, clock: Callable[[], float] = time.monotonic):
    self.adaptive = parts.adaptive
    self.parts = variants(parts)
    self.compiled: dict[str, Callable] = {}
    self._clock = clock
    self._count, self._spent_s = 0, 0.0

  def __call__(self, now: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
    adaptive = self.adaptive
    name, every = adaptive.now, adaptive.every_steps
    step = self._step(name, now, batch)
    if self._count % every < every - adaptive.timed_steps:
      now, metrics = step(now, batch)
    else:
      jax.block_until_ready(now)
      since = self._clock()
      now, metrics = jax.block_until_ready(step(now, batch))
      self._spent_s += self._clock() - since
    self._count += 1
    if self._count % every == 0:
      seconds = _agreed(self._spent_s / adaptive.timed_steps)
      adaptive.decide(load(metrics), seconds)
      self._spent_s = 0.0
    place = adaptive.choices.index(name)
    return now, metrics | {'exchange_choice': place}

  def _step(self, name, now, batch):
    if name not in self.compiled:
      lowered = self.parts[name].train_step.lower(now, batch)
      self.compiled[name] = lowered.compile()
      host.return_freed_memory()
    return self.compiled[name]


def load(metrics: Mapping[str, Any]) -> float:
  """The most of an expert over the mean, of all layers of a step."""
  return float(np.max(jax.device_get(metrics['moe/load_max_over_mean'])))


def variants(parts: Parts) -> dict[str, Parts]:
  """The parts with each choice in the place of every mixture's dispatch.

  Raises:
    ValueError: the model has no mixture.
  """
  found = {}
  for name, node in parts.config.train.adapt.choices.items():
    config = copy.deepcopy(parts.config)
    mixtures = [
      mixture
      for _, mixture in fields.nodes(config.model, 'config.model')
      if 'dispatch' in mixture
    ]
    if not mixtures:
      raise ValueError(
        'config.train.adapt chooses among '
        f'{", ".join(parts.adaptive.choices)}, but no layer of the model '
        'dispatches; set it to None.'
      )
    for mixture in mixtures:
      mixture['dispatch'] = ConfigDict(config_io.plain(node))
    found[name] = Parts(config, parts.devices)
  return found


def _agreed(seconds):
  """What the first process measured, so that all decide alike."""
  if jax.process_count() == 1:
    return seconds
  return float(multihost_utils.broadcast_one_to_all(np.float32(seconds)))
