"""What the stages of a pipeline change of a device's work."""

from __future__ import annotations

from typing import NamedTuple

from moejax.build import build
from moejax.pipeline import Circular
from moejax.plan.facts import Facts, Leaf, product

ONE = Circular(stages=1, microbatches=1)


class Stages(NamedTuple):
  """How layers are spread.

  Attributes:
    schedule: of the pipeline; ONE without any.
    devices: that hold a part of the layers each.
  """

  schedule: Circular
  devices: int

  @property
  def turns(self) -> float:
    """How often each layer of a device runs in a pass, bubbles included."""
    return self.schedule.iterations / self.schedule.repeats

  @property
  def work(self) -> float:
    """What a device's layers compute, of what is kept of it."""
    return self.turns / self.schedule.microbatches

  @property
  def share(self) -> float:
    """Tokens that a layer sees at a time, of those of a device outside."""
    return self.devices / self.schedule.microbatches


def of(facts: Facts, sizes: dict[str, int]) -> Stages:
  """Those of a config on a mesh."""
  node = facts.config.model.get('pipeline')
  schedule = ONE if node is None else build(node, 'config.model.pipeline')
  return Stages(schedule, product(sizes, facts.axes_of('layers')))


def cut(leaf: Leaf) -> set[str]:
  """Mesh axes that cut the layers of a parameter."""
  pairs = zip(leaf.axes, leaf.over, strict=True)
  return {axis for name, over in pairs if name == 'layers' for axis in over}
