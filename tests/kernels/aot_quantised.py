"""Compiles quantised grouped products for a TPU, on a machine without one.

Run by the fixture `on_topology`: tells FLOPs over the ideal ones by the dtypes
of rows and matrices.
"""

import sys

from topology import devices, tell

ROWS, D, F, E = 4096, 512, 512, 32


def main(topology):
  device = devices(topology)[0]
  import jax
  import jax.numpy as jnp
  import qwix
  from jax.sharding import SingleDeviceSharding

  from pallas_kernels.grouped_matmul.api import grouped_matmul

  sharding = SingleDeviceSharding(device)

  def struct(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  ratios = {}
  for rows, matrices in (
    ('int8', 'int8'),
    ('bfloat16', 'int8'),
    ('float8_e4m3fn', 'float8_e4m3fn'),
  ):
    x = struct((ROWS, D), rows)
    if rows != 'bfloat16':
      x = qwix.QArray(x, struct((ROWS, 1), jnp.float32))
    w = struct((E, D, F), matrices)
    w = qwix.QArray(w, struct((E, 1, F), jnp.float32))
    lowered = jax.jit(grouped_matmul).lower(x, w, struct((E,), jnp.int32))
    flops = lowered.compile().cost_analysis()['flops']
    ratios[f'{rows} {matrices}'] = flops / (2 * ROWS * D * F)
  tell(ratios)


if __name__ == '__main__':
  main(*sys.argv[1:])
