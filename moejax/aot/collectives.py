"""What a compiled program sends from device to device."""

from __future__ import annotations

import re

from moejax.aot.hlo import Computation, Instruction, Program

KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)


def bytes_by_kind(hlo_text: str | Program) -> dict[str, float]:
  """Bytes that one device sends in one run, by kind of collective.

  Kinds without any are left out. Bodies of loops count once for each trip. Of
  n devices that exchange arrays of b bytes each (what a device puts in), a
  device sends

    all-gather          (n - 1) b
    reduce-scatter      (n - 1) / n b
    all-reduce          2 (n - 1) / n b
    all-to-all          (n - 1) / n b
    ragged-all-to-all   (n - 1) / n b, as if all of b were full and spread
                        evenly: its sizes are data
    collective-permute  b

  which is what the best algorithms on a ring need. What the compiler spreads
  over several fusions counts once.

  Args:
    hlo_text: `compiled.as_text()`, or it parsed.
  """
  program = Program(hlo_text) if isinstance(hlo_text, str) else hlo_text

  def own(computation):
    sent = {}
    for part in program.fused(computation):
      for instruction in part.instructions.values():
        if (kind := kind_of(part, instruction)) is not None:
          key = _transfer(part, instruction)
          sent[kind, key] = _sent(program, kind, part, instruction)
    total = {}
    for (kind, _), size in sent.items():
      total[kind] = total.get(kind, 0) + size
    return total

  return program.total(own, _add, {})


def _transfer(computation, instruction):
  """What tells a transfer, which stands in several fusions, from others.

  It has one channel, or one chain; all of jax.shard_map's have channel 1.
  """
  channel = instruction.attribute(r'channel_id=(\d+)')
  chain = instruction.attribute(r'chain_id="(\d+)"')
  if channel not in (None, '1'):
    return channel
  if chain is not None:
    return chain, instruction.arrays[-1].dtype, instruction.arrays[-1].dims
  return computation.name, instruction.name


def kind_of(computation: Computation, instruction: Instruction) -> str | None:
  """The kind of a collective; None for any other instruction."""
  kind = instruction.opcode.removesuffix('-start')
  if kind not in KINDS:
    return None
  # The form that a TPU's reduce-scatter has when it is compiled.
  if computation.name.startswith('all-reduce-scatter'):
    return 'reduce-scatter'
  return kind


def group_size(program: Program, instruction: Instruction) -> int:
  """How many devices exchange with each other."""
  groups = instruction.attribute(
    r'replica_groups=(mesh\[[^{]*\{[^}]*\}|\[\d+,\d+\]|\{\{[\d,]+\})'
  )
  if groups is None:
    return program.devices
  if groups.startswith('mesh['):
    sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", groups))
    over = groups[groups.rindex('{') :]
    size = 1
    # An axis may be cut: 'x':(2)4 is the part of size 4 after one of 2.
    for name, part in re.findall(r"'([\w.]+)'(?::\(\d+\)(\d+))?", over):
      size *= int(part or sizes[name])
    return size
  if groups.startswith('['):
    return int(re.match(r'\[\d+,(\d+)\]', groups)[1])
  return groups.count(',') + 1


def _sent(program, kind, computation, instruction):
  operands = computation.operands(instruction)
  if kind == 'ragged-all-to-all':
    operands = operands[:1]  # the rest is where it goes
  size = sum(operand.bytes for operand in operands)
  if kind in ('collective-permute', 'collective-broadcast'):
    return size
  n = group_size(program, instruction)
  factor = {'all-gather': n - 1, 'all-reduce': 2 * (n - 1) / n}
  return size * factor.get(kind, (n - 1) / n)


def _add(a, b, times):
  return {k: a.get(k, 0) + times * b.get(k, 0) for k in a | b}
