"""What one way to spread a model costs, by formula: nothing is compiled."""

from __future__ import annotations

from typing import NamedTuple

from moejax.aot.topology import Machine
from moejax.plan import memory, traffic, work
from moejax.plan.facts import Facts
from moejax.plan.meshes import Choice

ASSUMPTIONS = """\
Assumed: routing is even, so that exchanges take one round; recomputation runs
the forward pass of the layers again; parameters that are cut over devices of
other tokens are gathered in the forward and in the backward pass; gradients are
summed by all-reduce in the dtype of the activations, also where they are cut;
what a layer is at work with is cut with the tokens alone; a program takes
16 MiB, and moves 38 times what its parameters take in main memory, as compiled
programs of small models do. The step is the longest of computing, memory and
links, as if they overlapped.
"""


class Cost(NamedTuple):
  """What one device needs.

  Attributes:
    choice: the mesh and the exchange.
    memory: bytes by what they hold.
    sent: bytes sent in a step, by `traffic.KINDS`.
    flops: of a step.
    moved: bytes to and from main memory in a step.
    seconds: least time of a step for 'compute', 'memory' and 'links'.
    limit: bytes that a program may use.
  """

  choice: Choice
  memory: dict[str, float]
  sent: dict[str, float]
  flops: float
  moved: float
  seconds: dict[str, float]
  limit: float

  @property
  def total(self) -> float:
    return sum(self.memory.values())

  @property
  def fits(self) -> bool:
    return self.total <= self.limit

  @property
  def step_seconds(self) -> float:
    return max(self.seconds.values())

  @property
  def bound(self) -> str:
    """What takes longest."""
    return max(self.seconds, key=self.seconds.get)

  def order(self) -> tuple:
    """Sorts the best first: by the step, by all work, by memory."""
    return self.step_seconds, sum(self.seconds.values()), self.total


def predict(
  facts: Facts, choice: Choice, machine: Machine, as_text: bool = False
) -> Cost:
  """What a choice costs on a machine.

  Args:
    facts: of the config.
    choice: the mesh and the exchange.
    machine: the topology.
    as_text: count like the text of a compiled program, which has the loop of
      further rounds of an exchange, and full buffers: to compare with one.
  """
  sent = traffic.sent(facts, choice, 1 + as_text)
  amounts = (
    work.flops(facts, choice, 2 * as_text),
    work.memory_bytes(facts, choice),
    sum(sent.values()),
  )
  rates, _ = machine.rates()
  names = 'compute', 'memory', 'links'
  seconds = (a / rate for a, rate in zip(amounts, rates, strict=True))
  return Cost(
    choice=choice,
    memory=memory.held(facts, choice),
    sent=sent,
    flops=amounts[0],
    moved=amounts[1],
    seconds=dict(zip(names, seconds, strict=True)),
    limit=machine.limit_bytes,
  )
