"""Calls of the TPU kernels of chunked recurrences."""

from __future__ import annotations

import math
import types

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import chips
from pallas_kernels.chunked.tpu_layout import CHUNKS, Problem
from pallas_kernels.route.parts import shaped

# Arrays [C, K] or [C, V] of f32 that a kernel body holds at a time.
WORKING = 32
GIVEN_BYTES = 16 * chips.MIB  # what the compiler gives a kernel unasked


def forward(body, problem, inputs, outputs, *, parallel=False, **settings):
  """Runs `body` on each chunk of each value head, in order.

  Args:
    body: takes references by name, as attributes; `state`, [V, K], is kept
      from chunk to chunk.
    problem: the sizes.
    inputs: name to form and array; `None` arrays are left out.
    outputs: name to form and dtype, or `None`.
    parallel: chunks need no order, and there is no `state`.
    **settings: of `_call`.
  """
  p = problem

  def own(b, g, n):
    return b, g, n

  def key(b, g, n):
    return b, _over(g, p.group), n

  return _call(
    body,
    p,
    inputs,
    outputs,
    grid=(p.batch, p.value_heads, p.chunks),
    ordered=0 if parallel else 1,
    places=(own, key, own),
    scratch={} if parallel else {'state': p.block('end')},
    **settings,
  )


def backward(body, problem, inputs, outputs, **settings):
  """Runs `body` on each chunk from the last to the first.

  Value heads that share a key head follow each other, so that one block of
  `dq` and `dk` serves them. Of the scratch, `state` is [shared, V, K], and
  `dq_sum` and `dk_sum`, [C, K], sum over them.
  """
  p, shared = problem, problem.shared

  def own(b, lead, n, r):
    return b, lead * shared + r, p.chunks - 1 - n

  def key(b, lead, n, r):
    return b, _over(lead, p.group // shared), p.chunks - 1 - n

  def summed(b, lead, n, r):
    return b, lead, p.chunks - 1 - n

  return _call(
    body,
    p,
    inputs,
    outputs,
    grid=(p.batch, p.value_heads // shared, p.chunks, shared),
    ordered=2,
    places=(own, key, summed),
    scratch=_backward_scratch(p),
    **settings,
  )


def _backward_scratch(p):
  return {
    'state': (p.shared, *p.block('end')),
    'dq_sum': p.block('key'),
    'dk_sum': p.block('key'),
  }


def gradients(p: Problem) -> dict:
  """The outputs of a backward pass that both operations have."""
  # Sums over parts of the value heads are added up after the kernel.
  key_dtype = p.dtype if p.shared == p.group else jnp.float32
  log_decay = None if p.decay == 'none' else (p.decay_form, jnp.float32)
  return {
    'dq': ('key', key_dtype),
    'dk': ('key', key_dtype),
    'dv': ('value', p.dtype),
    'dlog': log_decay,
    'dfirst': ('end', jnp.float32),
  }


def to_gradients(p: Problem, found):
  """Those of q, k, v, log decay and state from `gradients`."""

  def of_key(x):
    x = p.to_tokens(x, p.value_heads // p.shared, p.keys)
    if p.shared < p.group:
      x = x.reshape(*x.shape[:2], p.heads, -1, p.keys).sum(3)
    return x.astype(p.dtype)

  return (
    of_key(found['dq']),
    of_key(found['dk']),
    p.to_tokens(found['dv'], p.value_heads, p.values),
    p.to_decay(found.get('dlog')),
    p.to_state(found['dfirst']),
  )


def refuses(p: Problem) -> str | None:
  """Why the kernels do not take this, if so."""
  if p.dtype not in (jnp.float32, jnp.bfloat16):
    return f'it takes float32 or bfloat16, not {p.dtype}'
  if p.chunk not in CHUNKS:
    return f'chunk={p.chunk} is none of {", ".join(map(str, CHUNKS))}'
  # The backward kernel is the largest.
  outputs = [form for form, _ in filter(None, gradients(p).values())]
  inputs = ['key', 'key', 'value', 'value', 'decay', 'pair', 'state', 'end']
  needed = fast_bytes(
    p,
    [(form, 4) for form in inputs + outputs],
    _backward_scratch(p).values(),
  )
  chip = chips.current('tpu')
  if needed > chip.fast_bytes:
    return (
      f'K={p.keys}, V={p.values} and chunk={p.chunk} take {needed} bytes of '
      f'fast memory, and {chip.name} has {chip.fast_bytes}'
    )
  return None


def fast_bytes(problem: Problem, blocks, scratch) -> int:
  """Fast memory that a kernel takes, about.

  Args:
    problem: the sizes.
    blocks: form and bytes of an element, of each array; they are there twice,
      as one is moved while the other is worked on.
    scratch: shapes, f32.
  """
  (k, v), c = problem.lanes, problem.chunk
  needed = 2 * sum(
    math.prod(problem.block(form))
    * bytes_
    * (problem.shared if form == 'end' else 1)
    for form, bytes_ in blocks
  )
  needed += 4 * sum(math.prod(shape) for shape in scratch)
  return needed + 4 * (WORKING * c * max(k, v) + 2 * k * v + 8 * c * c)


def _over(index, count):
  # `//` would ask the host for its chip, to find the sign.
  return index if count == 1 else lax.div(index, jnp.int32(count))


def _spec(p, form, places, key=1):
  """Of one array.

  Args:
    p, form: the sizes, and which of them.
    places: maps from the indices of the grid to sequence, head and chunk.
    key: which of them is for key heads.
  """
  own, _, summed = places
  place = places[key] if form == 'key' else own
  block = p.block(form)
  if form in p.OF_TOKENS:

    def index(*ids):
      b, g, n = place(*ids)
      return b, n, g

    return pl.BlockSpec((None, *block), index)
  if form == 'end':
    # Of all heads that take turns: no block is left and met again.
    heads = None if summed is own else p.shared
    return pl.BlockSpec(
      (None, heads, *block), lambda *ids: (*summed(*ids)[:2], 0, 0)
    )
  return pl.BlockSpec(
    (None, None, None, *block), lambda *ids: (*place(*ids), 0, 0)
  )


def _call(
  body,
  p,
  inputs,
  outputs,
  *,
  grid,
  ordered,
  places,
  scratch,
  name,
  flops,
  exponentials,
  interpret,
):
  """Results by name.

  Args:
    body, p, inputs, outputs: as above.
    grid: its axes, of which the last `ordered` are run in order.
    ordered: see there.
    places: of value heads, of key heads, and of sums for key heads, which
      have the second axis of the grid for heads.
    scratch: name to shape, f32.
    name: of the kernel.
    flops, exponentials: of one chunk of one value head.
    interpret: see `pallas_call`.
  """
  inputs = {n: x for n, x in inputs.items() if x[1] is not None}
  outputs = {n: x for n, x in outputs.items() if x is not None}
  names = [*inputs, *outputs, *scratch]
  arrays = [array for _, array in inputs.values()]
  shapes = [
    shaped(
      p.shape(form, grid[1] if form == 'key' else p.value_heads), dtype, arrays
    )
    for form, dtype in outputs.values()
  ]
  forms = [form for form, _ in (*inputs.values(), *outputs.values())]
  blocks = [
    (form, x.dtype.itemsize)
    for form, x in zip(forms, (*arrays, *shapes), strict=True)
  ]
  needed = fast_bytes(p, blocks, scratch.values())

  def run(*refs):
    body(types.SimpleNamespace(**dict(zip(names, refs, strict=True))))

  results = pl.pallas_call(
    run,
    grid=grid,
    in_specs=[_spec(p, form, places) for form, _ in inputs.values()],
    out_specs=[_spec(p, form, places, key=2) for form, _ in outputs.values()],
    out_shape=shapes,
    scratch_shapes=[pltpu.VMEM(s, jnp.float32) for s in scratch.values()],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel',) * (len(grid) - ordered)
      + ('arbitrary',) * ordered,
      vmem_limit_bytes=None if needed <= GIVEN_BYTES else needed,
    ),
    cost_estimate=pl.CostEstimate(
      flops=p.steps * flops,
      transcendentals=p.steps * exponentials,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes)),
    ),
    interpret=interpret,
    name=name,
  )(*arrays)
  return dict(zip(outputs, results, strict=True))
