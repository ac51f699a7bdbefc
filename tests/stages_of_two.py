"""One of two processes, with two devices each, that are stages of a pipeline.

  python tests/stages_of_two.py 0 localhost:1234 out.npz
The first writes the value and all gradients.
"""

import sys

import jax
import numpy as np

from moejax import sharding
from moejax.pipeline import Circular
from tests import conftest
from tests.stages import objective, placed, plain


def main(process, address, path):
  # After conftest, which asks for eight devices.
  jax.config.update('jax_num_cpu_devices', 2)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(
    address, num_processes=2, process_id=int(process), initialization_timeout=60
  )
  from jax.experimental import multihost_utils

  mesh = sharding.make_mesh({'pipe': 2, 'data': 2})
  # A stage is a process: what it sends goes through the network.
  stages = [{d.process_index for d in row.flat} for row in mesh.devices]
  assert stages == [{0}, {1}]
  host = conftest.rows(0, batch=8, padding=(2, 0, 8, 1))
  own = {name: rows[int(process) :: 2] for name, rows in host.items()}
  model = plain(Circular(stages=2, microbatches=4, repeats=2))
  with sharding.use(mesh, sharding.RULES):
    variables = placed(model, mesh)
    where = sharding.batch_sharding(mesh, sharding.RULES)
    compute = jax.value_and_grad(objective(model), has_aux=True)
    (value, _), grads = jax.jit(compute)(
      variables['params'],
      variables['balance'],
      sharding.put_batch(own, where),
    )
    whole = multihost_utils.process_allgather((value, grads), tiled=True)
  if process == '0':
    np.savez(path, *jax.tree.leaves(whole))


if __name__ == '__main__':
  main(*sys.argv[1:])
