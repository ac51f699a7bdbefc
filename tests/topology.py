"""TPU topologies that are not here: the process that compiles for one.

libtpu takes one topology per process, so a test runs a script, by the fixture
`on_topology` of conftest.py, and the script does

  from topology import devices, report, tell
  device = devices('v5e:2x2')[0]     # before anything else imports jax
  tell(report(jax.jit(f).lower(*args).compile()))
"""

import json

from moejax.aot.topology import devices

__all__ = ['NAMES', 'devices', 'report', 'tell']
NAMES = ('v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')


def report(compiled) -> dict:
  """What the compiler says that a program costs, per device."""
  return {
    'flops': compiled.cost_analysis()['flops'],
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
  }


def tell(found) -> None:
  """Prints what the test gets back from `on_topology`."""
  print(json.dumps(found))
