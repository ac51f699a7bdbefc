"""Compiles attention, forward and backward, for an H100 that is not here.

  python tests/gpu/compile_attention.py
prints, as JSON, for each case the calls of cuDNN and the bytes kept for a
while.
"""

import functools
import json
import os
import pathlib
import sys

os.environ.update(
  JAX_PLATFORMS='cpu',
  JAX_SKIP_CUDA_CONSTRAINTS_CHECK='1',
  TF_CPP_MIN_LOG_LEVEL='2',
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1])]

import h100  # noqa: E402

from pallas_kernels.attention.api import attention  # noqa: E402

# T, H, G, K, V, window, dtype
CASES = {
  'grouped': (2048, 8, 2, 128, 128, None, jnp.bfloat16),
  'window': (2048, 4, 2, 64, 64, 300, jnp.bfloat16),
  'values are smaller': (2048, 4, 4, 96, 64, None, jnp.bfloat16),
  'f32': (512, 2, 2, 64, 64, None, jnp.float32),
}


def both(qkv, positions, segments, window):
  y, pull = jax.vjp(
    lambda qkv: attention(*qkv, positions, segments, window=window), qkv
  )
  return y, pull(y)


def arguments(where, batch, t, h, g, k, v, dtype):
  def of(*shape, dtype=dtype):
    return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=where)

  ints = of(t, dtype=jnp.int32)
  return (of(t, h, k), of(t, g, k), of(t, g, v)), ints, ints


def programs():
  """(name, lowered)"""
  (device,) = h100.devices()
  alone = jax.sharding.SingleDeviceSharding(device)
  for name, (*sizes, window, dtype) in CASES.items():
    f = functools.partial(both, window=window)
    yield name, jax.jit(f).lower(*arguments(alone, 1, *sizes, dtype))
  *sizes, window, dtype = CASES['grouped']
  f = functools.partial(both, window=window)
  for count in (1, 4):
    mesh = Mesh(np.array(h100.devices(count)), ('data',))
    rows = PartitionSpec('data')
    args = arguments(NamedSharding(mesh, rows), 4, *sizes, dtype)
    g = f
    if count > 1:
      g = jax.shard_map(
        f, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
      )
    with jax.set_mesh(mesh):
      yield f'mesh of {count}', jax.jit(g).lower(*args)


def main():
  found = {}
  for name, lowered in programs():
    program = lowered.compile()
    found[name] = {
      'calls': program.as_text().count('custom_call_target="__cudnn$fmha'),
      'temporary_bytes': program.memory_analysis().temp_size_in_bytes,
    }
  print(json.dumps(found))


if __name__ == '__main__':
  main()
