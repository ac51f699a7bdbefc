"""FLOPs of the matrix products of a lowered program: an oracle of counts.

Walks StableHLO, where shapes are known: two for each multiplication of a
`dot_general`, times the trips of the loops around it.
"""

from __future__ import annotations

import math
import re

from jax.extend.mlir import ir


def product_flops(lowered) -> int:
  """Of the whole program.

  Raises:
    AssertionError: a product in a loop whose trips only data knows.
  """
  module = lowered.compiler_ir('stablehlo')
  functions = {
    op.attributes['sym_name'].value: op for op in module.body.operations
  }
  return _of(functions['main'], functions)


def _of(op, functions):
  total = 0
  for region in op.regions:
    for block in region.blocks:
      for inner in block.operations:
        total += _one(inner.operation, functions)
  return total


def _one(op, functions):
  name = op.name
  if name == 'stablehlo.dot_general':
    return _dot(op)
  if name in ('func.call', 'call'):
    return _of(functions[op.attributes['callee'].value], functions)
  if name == 'stablehlo.while':
    each = _of_region(op.regions[1], functions)
    return each and each * _trips(op)
  return _of(op, functions)


def _of_region(region, functions):
  return sum(
    _one(inner.operation, functions)
    for block in region.blocks
    for inner in block.operations
  )


def _dot(op):
  left, result = op.operands[0], op.results[0]
  numbers = str(op.attributes['dot_dimension_numbers'])
  found = re.search(r'lhs_contracting_dimensions = \[([\d, ]*)\]', numbers)
  axes = re.findall(r'\d+', found.group(1)) if found else []  # outer: none
  shape = ir.RankedTensorType(left.type).shape
  made = math.prod(ir.RankedTensorType(result.type).shape)
  return 2 * made * math.prod(shape[int(axis)] for axis in axes)


def _trips(op):
  """Of a scan: its condition compares a counter with a constant."""
  text = str(op.regions[0].blocks[0])
  found = re.search(r'stablehlo.constant dense<(\d+)>', text)
  compared = re.search(r'stablehlo.compare +LT, %iterArg\S*, %c', text)
  assert found and compared, f'trips of a loop are not known: {text}'
  return int(found.group(1))
