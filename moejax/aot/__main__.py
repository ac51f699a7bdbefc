"""One compilation: a request as JSON on standard input, the report on output.

`moejax.aot.check` runs it; `python -m moejax.main --mode=aot` is for people.
"""

import dataclasses
import json
import sys

from moejax import config_io
from moejax.aot import topology


def main():
  request = json.load(sys.stdin)
  machine = topology.find(request['topology'])
  devices = topology.devices(machine.name)  # before anything imports jax

  from moejax.aot import compiler

  config = config_io.from_json(json.dumps(request['config']))
  try:
    answer = dataclasses.asdict(compiler.report(config, machine, devices))
  except ValueError as error:
    answer = {'error': str(error)}
  print(json.dumps(answer))


if __name__ == '__main__':
  main()
