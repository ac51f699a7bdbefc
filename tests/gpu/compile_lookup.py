"""Compiles lookups in tables for an H100, on a machine without one.

  python tests/gpu/compile_lookup.py
prints a JSON object for each case: its name, what the program keeps in memory
for a while, and for each kernel what tests/gpu/h100.py reads from its code.
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

from pallas_kernels.table_lookup.api import (  # noqa: E402
  table_lookup,
  table_products,
)
from pallas_kernels.table_lookup.shapes import PUBLISHED, SMALL  # noqa: E402

of = jax.ShapeDtypeStruct


def case(shape, dtype):
  """Products and sums with all gradients, as a memory layer has them."""
  n, k, slots, d, parts = shape

  def both(pre, values, ids, weights, x, dy):
    def f(pre, values, weights, x):
      hidden = table_products(pre, ids, x)
      return table_lookup(values, ids, weights * hidden[..., None])

    y, pull = jax.vjp(f, pre, values, weights, x)
    return y, pull(dy)

  table, x = of((slots, d), dtype), of((n, d), jnp.float32)
  ids, weights = of((n, k), jnp.int32), of((n, k, parts), jnp.float32)
  return both, table, table, ids, weights, x, x


def main():
  (device,) = h100.devices()
  shapes = PUBLISHED | {'odd': SMALL['odd']}
  for name, shape in shapes.items():
    for dtype in (jnp.float32, jnp.bfloat16):
      compiled, kernels = h100.compile_for(device, *case(shape, dtype))
      found = {
        'case': f'{name} {jnp.dtype(dtype).name}',
        'shape': shape,
        'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
        'kernels': [k for k in kernels if k['kernel'].startswith('table_')],
      }
      print(json.dumps(found), flush=True)


if __name__ == '__main__':
  main()
