"""Kernels that can be tuned: their candidates, and how to call them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import chips
from pallas_kernels.expert_ffn import cpu as layer_cpu
from pallas_kernels.expert_ffn import pallas_gpu as layer_gpu
from pallas_kernels.expert_ffn import pallas_tpu as layer_tpu
from pallas_kernels.expert_ffn import tpu_kernels, tpu_tiles
from pallas_kernels.grouped_matmul import (
  cpu,
  gpu_tiles,
  pallas_gpu,
  pallas_tpu,
  tile_shapes,
)
from pallas_kernels.grouped_matmul.gpu_tiles import Tiles
from pallas_kernels.grouped_matmul.tile_shapes import Problem, TileShape
from pallas_kernels.grouped_matmul.tiles import RowSteps
from pallas_kernels.tune import operands as given
from pallas_kernels.tune import store

MOST_CANDIDATES = 24  # of a model's ranking
# What is measured, in products of R rows with one matrix [D, F].
PRODUCT = dict.fromkeys(('nn', 'nt', 'tn'), 1)
DIRECTION = {'forward': 3, 'backward': 6}
# Kernels of the layer; each is measured within its whole direction.
GPU_KERNELS = {
  'up': 'forward',
  'down': 'forward',
  'dh': 'backward',
  'dw_down': 'backward',
  'dw_first': 'backward',
  'dx': 'backward',
}
TPU_KERNELS = {'up': 'forward', 'dh': 'backward'}


@dataclasses.dataclass(frozen=True)
class Space:
  """One implementation of an operation with tiles to choose.

  Attributes:
    op: its name in the store.
    forms: each to what a call multiplies, in products of R, D and F.
    chip: the kind of the machine that it would run on here, or `None` if it
      does not run here.
    candidates: the choices for a problem, what is used untuned among them.
    call: (form, *operands, case, choice) -> results.
    operands: (problem, dtype, seed) -> arrays.
    case: (problem, seed, exponent) -> how rows are spread over groups.
  """

  op: str
  forms: Mapping[str, int]
  chip: Callable[[], str | None]
  candidates: Callable[[Problem], list[dict[str, int]]]
  call: Callable[..., Any]
  operands: Callable[..., tuple] = given.product
  case: Callable[..., Any] = given.sizes


def _cpu_chip():
  return store.host() if jax.default_backend() == 'cpu' else None


def _cpu_candidates(p: Problem):
  if p.rows < 1:
    return []
  return [
    dataclasses.asdict(RowSteps(step, most))
    for step in (32, 64, 128, 256)
    for most in (128, 256, 512, 768, 1024)
    if step <= most
  ]


def _cpu_call(form, a, b, sizes_E, choice):
  return getattr(cpu, form)(a, b, sizes_E, steps=RowSteps(**choice))


def _device_chip(backend):
  if jax.default_backend() != backend:
    return None
  chip = chips.of_kind(jax.devices()[0].device_kind)
  return None if chip is None else chip.name


def _tpu_chip():
  return _device_chip('tpu')


def _gpu_chip():
  return _device_chip('gpu')


def _tpu_candidates(p: Problem):
  found = tile_shapes.candidates(p, chips.current('tpu', _tpu_chip()))
  return _choices(found[:MOST_CANDIDATES])


def _tpu_call(form, a, b, sizes_E, choice):
  call = getattr(pallas_tpu, form)
  return call(a, b, sizes_E, tiles=TileShape(**choice), chip=_tpu_chip())


def _gpu_candidates(p: Problem):
  product = pallas_gpu.product_of(p.form, _sizes(p), _dtype(p))
  return _choices(gpu_tiles.candidates(product))


def _gpu_call(form, a, b, sizes_E, choice):
  return getattr(pallas_gpu, form)(a, b, sizes_E, tiles=Tiles(**choice))


def _layer_gpu_candidates(p: Problem):
  products = layer_gpu.layer_products(_sizes(p), _dtype(p))
  return _choices(gpu_tiles.candidates(products[p.form]))


def _layer_tpu_candidates(p: Problem):
  def array(*shape):
    return jax.ShapeDtypeStruct(shape, _dtype(p))

  rows, pre = array(p.rows, p.d), array(p.rows, p.f)
  sizes = jax.ShapeDtypeStruct((p.groups,), jnp.int32)
  if p.form == 'up':
    firsts = [array(p.groups, p.d, p.f)] * 2
    work = tpu_kernels.up_work(rows, firsts, sizes, keep=True)
  else:
    down = array(p.groups, p.f, p.d)
    work = tpu_kernels.down_backward_work(rows, down, [pre] * 2, sizes)
  found = work.candidates(chips.current('tpu', _tpu_chip()))
  return _choices(found[:MOST_CANDIDATES])


def _layer_call(direction, module, args, plan, **tiles):
  x, matrices, weights, kept, dy = args
  args, static = (x, matrices, weights, plan), dict(activation=jax.nn.silu)
  if direction == 'forward':
    return module.forward(*args, keep=True, **static, **tiles)
  return module.backward(*args, kept, dy, **static, **tiles)


def _layer_cpu_call(form, *args):
  *args, plan, choice = args
  return _layer_call(form, layer_cpu, args, plan, steps=RowSteps(**choice))


def _layer_gpu_call(form, *args):
  *args, plan, choice = args
  tiles = {form: Tiles(**choice)}
  return _layer_call(GPU_KERNELS[form], layer_gpu, args, plan, tiles=tiles)


def _layer_tpu_call(form, *args):
  *args, plan, choice = args
  with chips.target(_tpu_chip()):
    return _layer_call(
      TPU_KERNELS[form], layer_tpu, args, plan, tiles=TileShape(**choice)
    )


def _sizes(p):
  return p.rows, p.groups, p.d, p.f


def _dtype(p):
  return {2: jnp.bfloat16, 4: jnp.float32}[p.itemsize]


def _choices(found):
  return [dataclasses.asdict(tiles) for tiles in found]


def _layer_space(op, forms, *rest):
  work = {form: DIRECTION[direction] for form, direction in forms.items()}
  return Space(op, work, *rest, given.layer, given.plan)


# Operation to its implementations.
SPACES = {
  'grouped_matmul': (
    Space(cpu.OP, PRODUCT, _cpu_chip, _cpu_candidates, _cpu_call),
    Space(tile_shapes.OP, PRODUCT, _tpu_chip, _tpu_candidates, _tpu_call),
    Space(pallas_gpu.OP, PRODUCT, _gpu_chip, _gpu_candidates, _gpu_call),
  ),
  'expert_ffn': (
    _layer_space(
      layer_cpu.OP,
      {name: name for name in DIRECTION},
      *(_cpu_chip, _cpu_candidates, _layer_cpu_call),
    ),
    _layer_space(
      layer_gpu.OP,
      GPU_KERNELS,
      *(_gpu_chip, _layer_gpu_candidates, _layer_gpu_call),
    ),
    _layer_space(
      tpu_tiles.OP,
      TPU_KERNELS,
      *(_tpu_chip, _layer_tpu_candidates, _layer_tpu_call),
    ),
  ),
}


def here(op: str) -> list[Space]:
  """The implementations of `op` that run on this machine.

  Raises:
    ValueError: no such operation, or none runs here.
  """
  if op not in SPACES:
    raise ValueError(
      f'op={op!r} has no tiles to tune; use one of {", ".join(SPACES)}.'
    )
  found = [space for space in SPACES[op] if space.chip() is not None]
  if not found:
    raise ValueError(
      f'op={op!r}: none of {", ".join(s.op for s in SPACES[op])} runs on '
      f'{jax.devices()[0].device_kind}.'
    )
  return found
