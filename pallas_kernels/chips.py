"""What a kernel has to know of a chip, and which chip it is for.

A program may be traced on a host that has no accelerator, so the chip is never
asked for: it is an argument, or `target`, or the smallest of its kind.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses

MIB, GIB = 2**20, 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as jax counts them.

  Attributes:
    name: as in `CHIPS`.
    platform: 'tpu' or 'cuda'.
    cores: TensorCores that share a kernel's parallel grid axes (2 where jax
      sees a chip of two cores as one device), or streaming multiprocessors.
    fast_bytes: VMEM of one core, or the most shared memory of one block.
    memory_bytes: HBM.
    memory_bytes_per_s: its bandwidth.
    flops_per_s: dense bf16 peak.
    matrix_unit: rows and columns of one matrix unit (TPU; 0 elsewhere).
    link_bytes_per_s: what it can send to other devices, all links together
      (TPU: the torus; H100 and H200: NVLink inside a node).
  """

  name: str
  platform: str
  cores: int
  fast_bytes: int
  memory_bytes: int
  memory_bytes_per_s: float
  flops_per_s: float
  matrix_unit: int = 0
  link_bytes_per_s: float = 0.0


# Sources. TPU peaks, HBM sizes, bandwidths and links: the "system architecture"
# pages of Cloud TPU (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x),
# where a v7x chip is two devices. VMEM, cores of a device and matrix units: the
# table of jax.experimental.pallas.tpu.get_tpu_info. H100 and H200 (SXM):
# NVIDIA's data sheets, peak without sparsity, one direction of NVLink; shared
# memory of one block: the CUDA programming guide, technical specifications of
# compute capability 9.0.
_H = 132, 227 * 1024
CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 'tpu', 2, 16 * MIB, 32 * GIB, 1.228e12, 275e12, 128, 300e9),
    Chip('v5e', 'tpu', 1, 128 * MIB, 16 * GIB, 0.819e12, 197e12, 128, 200e9),
    Chip('v5p', 'tpu', 2, 64 * MIB, 95 * GIB, 2.765e12, 459e12, 128, 600e9),
    Chip('v6e', 'tpu', 1, 128 * MIB, 32 * GIB, 1.64e12, 918e12, 256, 448e9),
    Chip('tpu7x', 'tpu', 1, 64 * MIB, 96 * GIB, 3.69e12, 1.1535e15, 256, 6e11),
    Chip('h100', 'cuda', *_H, 80 * 10**9, 3.35e12, 989.4e12, 0, 450e9),
    Chip('h200', 'cuda', *_H, 141 * 10**9, 4.8e12, 989.4e12, 0, 450e9),
  )
}

# No TPU here has less VMEM, and what divides over two cores runs on one.
SMALLEST = {'tpu': CHIPS['v4'], 'cuda': CHIPS['h100']}

_KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'TPU7x': 'tpu7x',
  'NVIDIA H100 80GB HBM3': 'h100',
  'NVIDIA H200': 'h200',
}
_target = contextvars.ContextVar('target', default=None)


def of_kind(device_kind: str) -> Chip | None:
  """The chip of a `jax.Device.device_kind`, or `None` for another."""
  return CHIPS.get(_KINDS.get(device_kind))


@contextlib.contextmanager
def target(chip: Chip | str | None):
  """Kernels traced inside choose their tiles for `chip`.

  A function that was traced before keeps its tiles: what changes with the
  target is speed and memory, never a result.

  Raises:
    ValueError: no chip has this name.
  """
  token = _target.set(None if chip is None else _named(chip))
  try:
    yield
  finally:
    _target.reset(token)


def current(platform: str, chip: Chip | str | None = None) -> Chip:
  """`chip`, else the target if it is of `platform`, else the smallest one."""
  chip = _target.get() if chip is None else _named(chip)
  if chip is None or chip.platform != platform:
    return SMALLEST[platform]
  return chip


def _named(chip):
  if isinstance(chip, Chip):
    return chip
  if chip not in CHIPS:
    raise ValueError(
      f'chip {chip!r} is unknown; use one of {", ".join(CHIPS)}.'
    )
  return CHIPS[chip]
