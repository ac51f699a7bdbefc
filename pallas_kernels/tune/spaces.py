"""Kernels that can be tuned: their candidates, and how to call them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from pallas_kernels import chips
from pallas_kernels.grouped_matmul import cpu, pallas_tpu, tile_shapes
from pallas_kernels.grouped_matmul.tile_shapes import Problem, TileShape
from pallas_kernels.grouped_matmul.tiles import RowSteps
from pallas_kernels.tune import store

MOST_CANDIDATES = 24  # of a model's ranking


@dataclasses.dataclass(frozen=True)
class Space:
  """One implementation of an operation with tiles to choose.

  Attributes:
    op: its name in the store.
    chip: the kind of the machine that it would run on here, or `None` if it
      does not run here.
    candidates: the choices for a problem, what is used untuned among them.
    call: (form, a, b, sizes_E, choice) -> result.
  """

  op: str
  chip: Callable[[], str | None]
  candidates: Callable[[Problem], list[dict[str, int]]]
  call: Callable[..., jax.Array]


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


def _tpu_chip():
  if jax.default_backend() != 'tpu':
    return None
  chip = chips.of_kind(jax.devices()[0].device_kind)
  return None if chip is None else chip.name


def _tpu_candidates(p: Problem):
  found = tile_shapes.candidates(p, chips.current('tpu', _tpu_chip()))
  return [dataclasses.asdict(t) for t in found[:MOST_CANDIDATES]]


def _tpu_call(form, a, b, sizes_E, choice):
  call = getattr(pallas_tpu, form)
  return call(a, b, sizes_E, tiles=TileShape(**choice), chip=_tpu_chip())


# Operation to its implementations.
SPACES = {
  'grouped_matmul': (
    Space(
      op=cpu.OP,
      chip=lambda: store.host() if jax.default_backend() == 'cpu' else None,
      candidates=_cpu_candidates,
      call=_cpu_call,
    ),
    Space(
      op=tile_shapes.OP,
      chip=_tpu_chip,
      candidates=_tpu_candidates,
      call=_tpu_call,
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
