"""One of two processes, with two devices each, that run an exchange together.

  python tests/dispatch/one_of_two.py 0 localhost:1234 AllToAll out.npz
The first writes the output and all gradients.
"""

import sys

import jax
import numpy as np


def main(process, address, kind, path):
  jax.config.update('jax_num_cpu_devices', 2)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(
    address, num_processes=2, process_id=int(process), initialization_timeout=60
  )
  from jax.experimental import multihost_utils

  from moejax import dispatch
  from tests.dispatch.test_exchange import compiled, load, mesh

  assert (jax.device_count(), jax.local_device_count()) == (4, 2)
  _, call = compiled(getattr(dispatch, kind)(), mesh(1, 4), 8)
  y, gradients, _ = call(*load('one_expert', 8))
  whole = multihost_utils.process_allgather((y, gradients), tiled=True)
  if process == '0':
    np.savez(path, *jax.tree.leaves(whole))


if __name__ == '__main__':
  main(*sys.argv[1:])
