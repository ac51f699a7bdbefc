"""Compiles quantised grouped products for a TPU, on a machine without one.

Run as a process of its own, as libtpu takes one topology per process:
  python tests/kernels/aot_quantised.py v5e:2x2
prints FLOPs over the ideal ones by the dtypes of rows and matrices, as JSON.
"""

import json
import os
import sys

KINDS = {'v5e': 'v5litepod-4', 'v6e': 'v6e-4', 'v5p': 'v5p-8', 'v4': 'v4-8'}
ROWS, D, F, E = 4096, 512, 512, 32


def main(topology):
  os.environ.update(
    JAX_PLATFORMS='cpu',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_ACCELERATOR_TYPE=KINDS[topology.split(':')[0]],
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
  )
  import jax
  import jax.numpy as jnp
  import qwix
  from jax.experimental import topologies
  from jax.sharding import SingleDeviceSharding

  from pallas_kernels.grouped_matmul.api import grouped_matmul

  found = topologies.get_topology_desc(platform='tpu', topology_name=topology)
  sharding = SingleDeviceSharding(found.devices[0])

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
  print(json.dumps(ratios))


if __name__ == '__main__':
  main(*sys.argv[1:])
