"""Machines that are not here, for the compiler to compile for.

libtpu takes one topology per process, and both compilers read the environment
when they start: a process asks for `devices` before it imports jax, once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os

from moejax.nearest import hint
from pallas_kernels import chips

# What Cloud TPU rents as one slice: chips along each axis of the torus.
_CUBES = """
2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16 12x12x12
12x16x16 16x16x16 16x16x24
"""
_SQUARES = '1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
# Nodes times GPUs of each.
_NODES = '1x1 1x2 1x4 1x8 2x8 4x8 8x8 16x8 32x8 64x8 128x8'
KNOWN = {
  'v4': _CUBES.split()[:-1],
  'v5e': _SQUARES.split(),
  'v5p': _CUBES.split(),
  'v6e': _SQUARES.split(),
  'h100': _NODES.split(),
}
# GiB of one device that libtpu leaves to programs.
_USABLE_GIB = {'v4': 30.75, 'v5e': 15.75, 'v5p': 95.74, 'v6e': 31.25}
# The smallest slice of each generation, which libtpu asks for at its start.
_SLICES = {'v4': 'v4-8', 'v5e': 'v5litepod-4', 'v5p': 'v5p-8', 'v6e': 'v6e-4'}

# From NVIDIA's data sheet and the limits of compute capability 9.0.
H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability {
    major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES
  }
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84978434048
}
"""


@dataclasses.dataclass(frozen=True)
class Machine:
  """A topology.

  Attributes:
    name: such as 'v5p:8x8x16'.
    chip: as in `pallas_kernels.chips`.
    chips: their number, which is that of devices.
  """

  name: str
  chip: chips.Chip
  chips: int

  @property
  def devices(self) -> int:
    return self.chips

  @property
  def devices_per_host(self) -> int:
    """Devices of one process; a TPU host has four chips of a larger slice."""
    if self.chip.platform == 'cuda':
      return int(self.name.rpartition('x')[2])
    return min(self.chips, 4)

  @property
  def limit_bytes(self) -> int:
    """Memory of a device that a program may use."""
    usable_gib = _USABLE_GIB.get(self.chip.name)
    if usable_gib is None:
      return self.chip.memory_bytes
    return round(usable_gib * chips.GIB)

  def rates(self) -> tuple[list[float], str]:
    """What a device does in a second: FLOPs, bytes of memory, bytes sent.

    The text says what is assumed.
    """
    chip = self.chip
    rates = [
      chip.flops_per_s,
      chip.memory_bytes_per_s,
      chip.link_bytes_per_s,
    ]
    links = 'NVLink of a node' if chip.platform == 'cuda' else 'all links'
    text = (
      f'assumed of a device: {rates[0] / 1e12:.0f} TFLOP/s (bf16), '
      f'{rates[1] / 1e9:.0f} GB/s of main memory, {rates[2] / 1e9:.0f} GB/s '
      f'sent ({links}); all three at their peak and at the same time'
    )
    return rates, text


def find(name: str) -> Machine:
  """Looks up a topology; the count alone, as in h100:8, is of one node.

  Raises:
    ValueError: it is unknown; the known ones are listed.
  """
  chip, _, shape = name.partition(':')
  if chip == 'h100' and shape.isdigit():
    shape = f'1x{shape}'
    name = f'{chip}:{shape}'
  if shape not in KNOWN.get(chip, ()):
    names = [f'{c}:{s}' for c, shapes in KNOWN.items() for s in shapes]
    listed = '; '.join(f'{c}: {" ".join(s)}' for c, s in KNOWN.items())
    raise ValueError(
      f'topology {name!r} is unknown{hint(name, names)}; use CHIP:SHAPE, such '
      f'as v5p:8x8x16, of {listed}.'
    )
  count = math.prod(map(int, shape.split('x')))
  return Machine(name, chips.CHIPS[chip], count)


def check_compiler(machine: Machine) -> None:
  """Raises a ValueError unless what compiles for it is installed."""
  module, extra = ('libtpu', 'aot')
  if machine.chip.platform == 'cuda':
    module, extra = ('jax_cuda12_plugin', 'aot-gpu')
  if importlib.util.find_spec(module) is None:
    raise ValueError(
      f'topology {machine.name!r} needs {module}, which compiles for it '
      f"without a device; install it: pip install -e '.[{extra}]'."
    )


def devices(name: str) -> list:
  """The devices of a topology, in a process that has not imported jax yet.

  Raises:
    ValueError: it is unknown, or what compiles for it is not installed.
  """
  machine = find(name)
  check_compiler(machine)
  name = machine.name
  chip, shape = machine.chip.name, name.partition(':')[2]
  os.environ['JAX_PLATFORMS'] = 'cpu'
  if chip == 'h100':
    # There is no driver to ask for its version.
    os.environ['JAX_SKIP_CUDA_CONSTRAINTS_CHECK'] = '1'
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
      '', platform='cuda', target_config=H100, topology=f'1x{shape}'
    )
    return list(found.devices)
  os.environ.update(
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_ACCELERATOR_TYPE=_SLICES[chip],
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
  )
  from jax.experimental import topologies

  options = {}
  if shape == '1x1':  # a host has four chips, but for the smallest slices
    options['chips_per_host_bounds'] = (1, 1, 1)
  if chip == 'v4':  # the two cores of a chip are one device, as on v4 itself
    options['chip_config_name'] = 'megacore'
  found = topologies.get_topology_desc(
    platform='tpu', topology_name=name, **options
  )
  return list(found.devices)
