"""Compiles one training step for a TPU topology, on a machine without one.

  python tests/aot_step.py v5e:2x2 Sort
prints the FLOPs of the step and its temporary bytes, as JSON.
"""

import sys

from topology import devices, report, tell


def main(topology, dispatch):
  found = devices(topology)
  import jax
  import numpy as np
  from jax.sharding import AxisType, Mesh

  grid = np.array(found).reshape(-1, 2)
  mesh = Mesh(grid, ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
  compiled = compile_step(mesh, dispatch)
  sharding = jax.tree.leaves(compiled.input_shardings)[0]
  platform = sharding.mesh.devices.flat[0].platform
  tell(report(compiled) | {'platform': platform})


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
