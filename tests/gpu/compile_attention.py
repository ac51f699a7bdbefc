"""Compiles attention, forward and backward, for an H100 that is not here.

  python tests/gpu/compile_attention.py
prints, as JSON, for each case the calls of cuDNN and the bytes kept for a
while.
"""

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


def compiled(where, t, h, g, k, v, window, dtype):
  def both(qkv, positions, segments):
    y, pull = jax.vjp(
      lambda qkv: attention(*qkv, positions, segments, window=window), qkv
    )
    return y, pull(y)

  def of(*shape, dtype=dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  ints = of(1, t, dtype=jnp.int32)
  qkv = of(1, t, h, k), of(1, t, g, k), of(1, t, g, v)
  return jax.jit(both).lower(qkv, ints, ints).compile()


def main():
  (device,) = h100.devices()
  where = jax.sharding.SingleDeviceSharding(device)
  found = {}
  for name, case in CASES.items():
    program = compiled(where, *case)
    found[name] = {
      'calls': program.as_text().count('custom_call_target="__cudnn$fmha'),
      'temporary_bytes': program.memory_analysis().temp_size_in_bytes,
    }
  print(json.dumps(found))


if __name__ == '__main__':
  main()
