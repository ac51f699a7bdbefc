"""The text of a compiled program: its computations, and how often each runs.

XLA's own counts look at the body of a loop once. Here every instruction knows
the computations that it calls, and a loop the number of its trips.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

_BITS = {'pred': 8, 's4': 4, 'u4': 4, 's2': 2, 'u2': 2, 'token': 0}
_BITS |= {'bf16': 16, 'c64': 64, 'c128': 128}
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_LINE = re.compile(r'\s+(ROOT )?%([\w.\-]+) = ')
_HEAD = re.compile(r'(ENTRY )?%([\w.\-]+) \(.*\{$')
_COMMENT = re.compile(r'/\*.*?\*/')
_ONE = re.compile(r'\b(?:calls|to_apply|body|condition)=%([\w.\-]+)')
_MANY = re.compile(
  r'\b(?:branch_computations|called_computations)=\{([^}]*)\}'
  r'|\b(?:true|false)_computation=(%[\w.\-]+)'
)


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a shape, as it lies on one device."""

  dtype: str
  dims: tuple[int, ...]
  layout: str = ''

  @property
  def bytes(self) -> float:
    return math.prod(self.dims) * _bits(self.dtype) / 8

  @property
  def in_main_memory(self) -> bool:
    # S(1) and up are fast memories and flags.
    return 'S(' not in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: unique in its computation.
    arrays: of its result; several for a tuple.
    opcode: such as 'fusion'.
    operands: names of instructions of the same computation.
    rest: attributes, as text; of a constant also its value.
  """

  name: str
  arrays: tuple[Array, ...]
  opcode: str
  operands: tuple[str, ...]
  rest: str

  @property
  def bytes(self) -> float:
    return sum(array.bytes for array in self.arrays)

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Computations that it names, a loop's condition among them."""
    names = _ONE.findall(self.rest)
    for several, one in _MANY.findall(self.rest):
      names += _NAME.findall(several or one)
    return tuple(names)

  def attribute(self, pattern: str) -> str | None:
    """The first group of a regex in the attributes."""
    found = re.search(pattern, self.rest)
    return found and found[1]


@dataclasses.dataclass
class Computation:
  """Instructions by name, in order; `root` names the result."""

  name: str
  instructions: dict[str, Instruction]
  root: str | None = None

  def operands(self, instruction: Instruction) -> list[Instruction]:
    return [self.instructions[name] for name in instruction.operands]


class Program:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: the one that runs first.
    devices: that run it together.
    unknown_loops: names of loops whose trips could not be told; they count
      once.
  """

  def __init__(self, text: str):
    self.computations, self.entry = {}, ''
    found = re.search(r'num_partitions=(\d+)', text[:100_000])
    self.devices = int(found[1]) if found else 1
    self.unknown_loops = []
    current = None
    for line in text.splitlines():
      if line.startswith(' ') and current is not None:
        _read_line(current, line)
      elif head := _HEAD.match(line):
        current = Computation(head[2], {})
        self.computations[current.name] = current
        self.entry = current.name if head[1] else self.entry

  def total(self, own: Callable, add: Callable, zero):
    """Sums what `own(computation)` counts over all that runs.

    Args:
      own: counts the instructions of one computation, fused ones included and
        those of loops, branches and calls not.
      add: `(a, b, times)`: a plus `times` b.
      zero: the sum of nothing.
    """

    @functools.cache
    def run(name):
      computation = self.computations[name]
      sum_ = add(zero, own(computation), 1)
      for instruction in computation.instructions.values():
        for names, times in self.calls(computation, instruction):
          # One branch runs: the dearest is counted.
          dearest = max((run(name) for name in names), key=_size)
          sum_ = add(sum_, dearest, times)
      return sum_

    return run(self.entry)

  def calls(
    self, computation: Computation, instruction: Instruction
  ) -> Iterator[tuple[tuple[str, ...], int]]:
    """(alternatives, how often) for what an instruction runs, but fusions."""
    if instruction.opcode == 'while':
      yield (
        (instruction.attribute(r'body=%([\w.\-]+)'),),
        self.trips(computation, instruction),
      )
    elif instruction.opcode == 'conditional':
      yield instruction.called, 1
    elif instruction.opcode in ('call', 'async-start'):
      yield instruction.called[:1], 1

  def fused(self, computation: Computation) -> Iterator[Computation]:
    """The computation and all that is fused into its instructions."""
    yield computation
    for instruction in computation.instructions.values():
      if instruction.opcode == 'fusion':
        yield from self.fused(self.computations[instruction.called[0]])

  def trips(self, computation: Computation, loop: Instruction) -> int:
    """How often the body of a loop runs; 1 where that cannot be told."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known is not None:
      return int(known)
    condition = self.computations[loop.attribute(r'condition=%([\w.\-]+)')]
    bounds = [
      _bound(part, i)
      for part in self.fused(condition)
      for i in part.instructions.values()
      if i.opcode == 'compare'
    ]
    if len(bounds) == 1 and bounds[0] is not None:
      # Loops of jax count up by 1 from 0.
      return bounds[0]
    if loop.name not in self.unknown_loops:
      self.unknown_loops.append(loop.name)
    return 1


def _bound(condition, compare):
  """The constant that a counter is compared with."""
  step = {'LT': 0, 'LE': 1}.get(compare.attribute(r'direction=(\w+)'))
  right = condition.instructions[compare.operands[1]]
  while right.opcode in ('copy', 'bitcast', 'convert'):
    right = condition.instructions[right.operands[0]]
  value = re.match(r'(\d+)\)', right.rest)
  if step is None or right.opcode != 'constant' or value is None:
    return None
  return int(value[1]) + step


def _read_line(computation, line):
  match = _LINE.match(line)
  if match is None:
    return
  line = _COMMENT.sub('', line)
  start = _closing(line, match.end())
  shape, rest = line[match.end() : start], line[start:].lstrip()
  opcode, _, rest = rest.partition('(')
  operands = ()
  if opcode not in ('constant', 'parameter'):
    end = _closing(f'({rest}', 0) - 1
    operands = tuple(_NAME.findall(rest[:end]))
    rest = rest[end:]
  arrays = tuple(
    Array(dtype, tuple(map(int, filter(None, dims.split(',')))), layout)
    for dtype, dims, layout in _ARRAY.findall(shape)
  )
  computation.instructions[match[2]] = Instruction(
    match[2], arrays, opcode, operands, rest
  )
  if match[1]:
    computation.root = match[2]


def _closing(line, start):
  """Where what begins at `start` ends: a parenthesis, or a word."""
  if line[start] != '(':
    return line.index(' ', start)
  depth = 0
  for i in range(start, len(line)):
    depth += (line[i] == '(') - (line[i] == ')')
    if not depth:
      return i + 1
  raise ValueError(f'unbalanced parentheses in HLO: {line[:200]}')


def _bits(dtype):
  if dtype in _BITS:
    return _BITS[dtype]
  return int(re.search(r'\d+', dtype)[0])


def _size(counted):
  return sum(counted.values()) if isinstance(counted, dict) else counted
