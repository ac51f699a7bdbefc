"""TPU topologies that are not here: the process that compiles for one.

libtpu takes one topology per process, so a test runs a script, by the fixture
`on_topology` of conftest.py, and the script does

  from topology import devices, report, tell
  device = devices('v5e:2x2')[0]     # before anything else imports jax
  tell(report(jax.jit(f).lower(*args).compile()))
"""

import json
import os

NAMES = ('v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')
KINDS = {'v5e': 'v5litepod-4', 'v6e': 'v6e-4', 'v5p': 'v5p-8', 'v4': 'v4-8'}


def devices(topology: str) -> list:
  """The devices of `topology`, in a process that has not imported jax yet."""
  os.environ.update(
    JAX_PLATFORMS='cpu',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_ACCELERATOR_TYPE=KINDS[topology.split(':')[0]],
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
  )
  from jax.experimental import topologies

  found = topologies.get_topology_desc(platform='tpu', topology_name=topology)
  return list(found.devices)


def report(compiled) -> dict:
  """What the compiler says that a program costs, per device."""
  return {
    'flops': compiled.cost_analysis()['flops'],
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
  }


def tell(found) -> None:
  """Prints what the test gets back from `on_topology`."""
  print(json.dumps(found))
