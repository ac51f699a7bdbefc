"""What one device computes, and what it moves to and from its main memory."""

from __future__ import annotations

import math
import re

import numpy as np

from moejax.aot.hlo import Computation, Instruction, Program

# These make no traffic, or what they call does.
_FREE = re.compile(
  'parameter|constant|tuple|get-tuple-element|bitcast|iota|opt-barrier'
  '|after-all|while|conditional|call|partition-id|replica-id'
  '|copy-done|async-update|async-done'
)

# What changes a part of its first operand, and which operand that part is.
_UPDATED = {'dynamic-update-slice': 1, 'scatter': -1}

# Products of a splash kernel with rows as long as a key, and as a value.
_SPLASH = {'fwd': (1, 1), 'dq': (2, 1), 'dkv': (2, 2)}
# Likewise of cuDNN, whose backward pass computes the scores again.
_CUDNN = {'': (1, 1), 'Backward': (3, 2)}
# FLOPs that a kernel tells: of a TPU's in JSON, of Triton's in a string of it.
_TOLD = r'(?:"|\\22)flops(?:"|\\22): ?(?:"|\\22)(-?\d+)(?:"|\\22)'
_TRITON = r'custom_call_target="__gpu\$xla\.gpu\.triton"'


def flops(program: Program) -> float:
  """FLOPs of matrix products of one device in one run.

  Those of kernels are what their calls say; element-wise work is left out.
  Bodies of loops count once for each trip.
  """

  def own(computation):
    return sum(
      _flops(part, instruction)
      for part in program.fused(computation)
      for instruction in part.instructions.values()
    )

  return program.total(own, _add, 0.0)


def silent_kernels(program: Program) -> int:
  """Calls of Triton kernels, as they stand in the text, that tell no FLOPs."""
  return sum(
    instruction.opcode == 'custom-call'
    and re.search(_TRITON, instruction.rest) is not None
    and instruction.attribute(_TOLD) is None
    for computation in program.computations.values()
    for instruction in computation.instructions.values()
  )


def memory_bytes(program: Program) -> float:
  """Bytes that one device reads from and writes to its main memory.

  Each instruction reads its operands and writes its result; of an array that
  it reads or writes a slice of, that slice. What the compiler has put into
  fast memory is left out. Caches are not modelled.
  """

  def own(computation):
    return sum(
      _traffic(program, computation, instruction)
      for instruction in computation.instructions.values()
      if not _FREE.fullmatch(instruction.opcode)
    )

  return program.total(own, _add, 0.0)


def _add(a, b, times):
  return a + times * b


def _flops(computation: Computation, instruction: Instruction) -> float:
  if instruction.opcode == 'custom-call':
    told = instruction.attribute(_TOLD)
    if told:
      return float(told)
    return _attention_flops(instruction) + _cudnn_flops(instruction)
  if instruction.opcode not in ('dot', 'convolution'):
    return 0.0
  (result,) = instruction.arrays
  left, right = (
    operand.arrays[0].dims for operand in computation.operands(instruction)
  )
  if instruction.opcode == 'dot':
    summed = instruction.attribute(r'lhs_contracting_dims=\{([\d,]*)\}') or ''
    sizes = [left[int(d)] for d in summed.split(',') if d]
    return 2.0 * math.prod(result.dims) * math.prod(sizes)
  return 2.0 * _multiplications(instruction, left, right, result.dims)


def _attention_flops(instruction):
  """Of jax's splash attention, whose calls tell nothing; 0 of another kernel.

  Of the blocks of its mask those below and on the diagonal, as if no window
  left out any.
  """
  kernel = re.match(r'splash_mha_(fwd|dq|dkv)', instruction.name)
  if kernel is None:
    return 0.0
  shapes = [
    (kind, [int(n) for n in dims.split(',')])
    for kind, dims in re.findall(r'(\w+)\[([\d,]+)\]\{', instruction.rest)
  ]
  blocks = next(dims[-1] for kind, dims in shapes if kind == 's8')
  arrays = [dims for kind, dims in shapes if kind in ('bf16', 'f32')]
  query, key, value = arrays[:3]
  pairs = query[-2] * key[-2] * (blocks + 1) / (2 * blocks)
  with_keys, with_values = _SPLASH[kernel[1]]
  depth = with_keys * key[-1] + with_values * value[-1]
  return 2.0 * math.prod(query[:-2]) * pairs * depth


def _cudnn_flops(instruction):
  """Of cuDNN's attention, half of all scores if it is causal; else 0."""
  kernel = instruction.attribute(r'="__cudnn\$fmha[A-Za-z]*?Softmax(\w*)"')
  if kernel not in _CUDNN:
    return 0.0
  layouts = instruction.attribute(r'operand_layout_constraints=\{(.*?)\}, api')
  query, _, value, *_ = (
    [int(n) for n in dims.split(',')]
    for dims in re.findall(r'\w+\[([\d,]+)\]', layouts)
  )
  scores = instruction.attribute(
    r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]'
  )
  pairs = math.prod(int(n) for n in re.findall(r'\d+', scores))
  if 'CAUSAL' in (instruction.attribute(r'"mask_type": ?"(\w+)"') or ''):
    pairs /= 2
  with_keys, with_values = _CUDNN[kernel]
  return 2.0 * pairs * (with_keys * query[-1] + with_values * value[-1])


def _multiplications(instruction, left, right, result):
  """Of a convolution, as which a TPU sees every product of matrices."""
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.rest)
  lhs, rhs, out = labels.groups()
  count = result[out.index('b')] * result[out.index('f')]
  # With groups of features the kernel has only those of one group.
  count *= right[rhs.index('i')]
  window = instruction.attribute(r'window=\{([^}]*)\}') or ''
  fields = dict(field.split('=') for field in window.split())
  for i in range(sum(label.isdigit() for label in out)):
    places = (
      left[lhs.index(str(i))],
      right[rhs.index(str(i))],
      result[out.index(str(i))],
    )
    count *= _pairs(fields, i, *places)
  # Groups of batch entries each see their own filters.
  return count / int(instruction.attribute(r'batch_group_count=(\d+)') or 1)


def _pairs(fields, axis, size, taps, places):
  """(place, tap) pairs along one axis that fall on a number, not on padding."""

  def field(name, default):
    values = fields.get(name)
    return values.split('x')[axis] if values else default

  low = int(field('pad', '0_0').split('_')[0])
  dilate = int(field('lhs_dilate', '1'))
  place = np.arange(places)[:, None] * int(field('stride', '1')) - low
  place = place + np.arange(taps) * int(field('rhs_dilate', '1'))
  inside = (place >= 0) & (place <= (size - 1) * dilate)
  return int((inside & (place % dilate == 0)).sum())


def _traffic(program, computation, instruction):
  """Bytes of one instruction."""
  operands = computation.operands(instruction)
  read = [_main(operand) for operand in operands]
  written = _main(instruction)
  if instruction.opcode in ('dynamic-slice', 'slice', 'gather'):
    return min(read[0], _all(instruction)) + written
  if instruction.opcode in _UPDATED:
    part = _all(operands[_UPDATED[instruction.opcode]])
    return 2 * min(part, written)
  if instruction.opcode == 'fusion':
    inner = program.computations[instruction.called[0]]
    return _fused_traffic(inner, read, written)
  if instruction.opcode.endswith('-start'):
    return sum(read) + max((_bytes(a) for a in instruction.arrays), default=0)
  return sum(read) + written


def _fused_traffic(inner, read, written):
  """Of a fusion, given the bytes of its operands and of its result."""
  users = {}
  for instruction in inner.instructions.values():
    for name in instruction.operands:
      users.setdefault(name, []).append(instruction)
  total = written
  for instruction in inner.instructions.values():
    if instruction.opcode != 'parameter':
      continue
    size = read[int(re.match(r'\d+', instruction.rest)[0])]
    uses = users.get(instruction.name, [])
    if uses and all(use.opcode in ('dynamic-slice', 'gather') for use in uses):
      size = min(size, sum(map(_all, uses)))
    updates = [
      u
      for u in uses
      if u.opcode in _UPDATED and u.operands[0] == instruction.name
    ]
    if uses and len(updates) == len(uses):
      # Changed in place: the part alone is written, and a scatter reads it.
      kind = updates[0].opcode
      part = _all(inner.instructions[updates[0].operands[_UPDATED[kind]]])
      total -= max(0, min(written, _all(updates[0])) - part)
      size = min(size, part) if kind == 'scatter' else 0
    total += size
  return total


def _main(instruction):
  return sum(map(_bytes, instruction.arrays))


def _bytes(array):
  return array.bytes if array.in_main_memory else 0


def _all(instruction):
  return instruction.bytes
