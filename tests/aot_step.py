"""Compiles one training step for a TPU topology, on a machine without one.

Run as a process of its own, as libtpu takes one topology per process:
  python tests/aot_step.py v5e:2x2 Sort
prints the FLOPs of the step and its temporary bytes, as JSON.
"""

import json
import os
import sys

KINDS = {'v5e': 'v5litepod-4', 'v6e': 'v6e-4', 'v5p': 'v5p-8', 'v4': 'v4-8'}


def main(topology, dispatch):
  os.environ.update(
    JAX_PLATFORMS='cpu',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_ACCELERATOR_TYPE=KINDS[topology.split(':')[0]],
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
  )
  import jax
  import numpy as np
  from jax.experimental import topologies
  from jax.sharding import AxisType, Mesh

  found = topologies.get_topology_desc(platform='tpu', topology_name=topology)
  devices = np.array(found.devices).reshape(-1, 2)
  mesh = Mesh(devices, ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
  compiled = compile_step(mesh, dispatch)
  print(
    json.dumps(
      {
        'flops': compiled.cost_analysis()['flops'],
        'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
        'platform': jax.tree.leaves(compiled.input_shardings)[0]
        .mesh.devices.flat[0]
        .platform,
      }
    )
  )


def compile_step(mesh, dispatch):
  import jax
  import jax.numpy as jnp

  from configs import common, tiny
  from moejax import sharding, state, step
  from moejax.parts import Parts

  config = tiny.get_config('smoke')
  config.model.dtype = 'bfloat16'
  if dispatch == 'Einsum':
    config.model.blocks.sparse.ffn.dispatch = common.node(
      'dispatch.Einsum', capacity_factor=1.25, group_tokens=256
    )
  parts = Parts(config)
  where = sharding.batch_sharding(mesh, parts.rules)
  row = jax.ShapeDtypeStruct((8, 128), jnp.int32, sharding=where)
  names = ('tokens', 'targets', 'segments', 'positions')
  do = step.train_step(
    parts.model, parts.tx, loss=parts.loss, weights=dict(config.losses)
  )
  abstract = state.abstract(parts.variables, parts.tx, mesh, parts.rules)
  with sharding.use(mesh, parts.rules):
    lowered = jax.jit(do, donate_argnums=0).lower(
      abstract, dict.fromkeys(names, row)
    )
    return lowered.compile()


if __name__ == '__main__':
  main(*sys.argv[1:])
