"""An H100 to compile for, on a machine that has no GPU.

The process must set JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 before jax is imported:
there is no driver to ask for its version.
"""

from __future__ import annotations

import pathlib
import re
import sys
import tempfile

import jax
from jax.experimental import topologies

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from cubin import cubins, kernels  # noqa: E402
from executable import records  # noqa: E402

from moejax.aot.topology import H100  # noqa: E402


def devices(count: int = 1) -> list:
  """H100s of one machine."""
  topology = topologies.get_topology_desc(
    '', platform='cuda', target_config=H100, topology=f'1x1x{count}'
  )
  return topology.devices


def compile_for(device, f, *args):
  """(compiled, kernels): `f` for `args`, trees of shapes and dtypes.

  Each kernel is a dict of its name, registers, frame, shared (bytes of shared
  memory, `None` where XLA does not say) and counts of instructions.
  """
  where = jax.sharding.SingleDeviceSharding(device)
  args = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), args
  )
  return inspect(jax.jit(f).lower(*args))


def inspect(lowered):
  """Compiles and reads what came out."""
  with tempfile.TemporaryDirectory() as folder:
    compiled = lowered.compile(compiler_options={'xla_dump_to': folder})
    thunks = pathlib.Path(folder).glob('*thunk_sequence.txt')
    text = '\n'.join(path.read_text() for path in thunks)
  data = records(compiled.runtime_executable().serialize())
  found = []
  for cubin in cubins(data):
    for name, facts in kernels(cubin).items():
      shared = re.search(
        rf'\b{re.escape(name)} grid: .* shared_memory: (\d+) bytes', text
      )
      shared = int(shared[1]) if shared else None
      found.append({'kernel': name, 'shared': shared, **facts})
  return compiled, found
