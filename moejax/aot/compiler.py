"""Compiles the training step of a config for devices that are not here."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from moejax import accounting, fields, metrics, sharding, validate
from moejax.aot import collectives, topology, work
from moejax.aot.hlo import Program
from moejax.aot.report import Memory, Report
from moejax.parts import Parts

# What a program wants of main memory, as the compiler says it.
_SIZE = re.compile(r'([\d.]+)([MGT])\b')


def compile_step(parts: Parts):
  """The compiled step that training runs, for the devices of `parts`."""
  # Made before the mesh is in force: an array made on it would need it here.
  step, args = parts.train_step, (parts.abstract_state, parts.abstract_batch)
  with sharding.use(parts.mesh, parts.rules):
    return step.lower(*args).compile()


def report(
  config: ConfigDict, machine: topology.Machine, devices: list
) -> Report:
  """Compiles a config's step and says what it costs.

  Args:
    config: the whole config.
    machine: whose devices they are.
    devices: `topology.devices(machine.name)`.

  Raises:
    ValueError: the config cannot run on so many devices.
  """
  start_s = time.monotonic()
  fields.check(config)
  parts = Parts(config, devices)
  validate.check_program(config, parts)
  train = config.train
  tokens = train.batch_size * train.seq_len / len(devices)
  model_flops = tokens * accounting.train_flops_per_token(
    parts.model, train.seq_len
  )
  compiled = refused = None
  try:
    compiled = compile_step(parts)
  except jax.errors.JaxRuntimeError as error:
    refused = str(error).splitlines()[0]
    # A kernel that wants too much fast memory is an error, not a refusal.
    if 'RESOURCE_EXHAUSTED' not in refused or not _SIZE.search(refused):
      raise
  program = compiled and Program(compiled.as_text())
  rates, assumptions = machine.rates()
  common = dict(
    topology=machine.name,
    devices=len(devices),
    mesh=dict(parts.mesh.shape),
    memory=_memory(parts, machine, compiled, program, refused),
    model_flops=model_flops,
    compile_seconds=time.monotonic() - start_s,
    peak_rss_bytes=metrics.peak_memory_bytes()['host'],
    assumptions=assumptions,
    refused=refused,
  )
  if refused:
    return Report(**common)
  flops, moved = work.flops(program), work.memory_bytes(program)
  sent = collectives.bytes_by_kind(program)
  amounts = flops, moved, sum(sent.values())
  names = 'compute', 'memory', 'links'
  seconds = (a / rate for a, rate in zip(amounts, rates, strict=True))
  return Report(
    **common,
    flops=flops,
    memory_bytes=moved,
    collective_bytes=sent,
    seconds=dict(zip(names, seconds, strict=True)),
    unknown_loops=len(program.unknown_loops),
    silent_kernels=work.silent_kernels(program),
  )


def heap_bytes(stats) -> int:
  """What a program reserves at its peak beside arguments and results.

  `temp_size_in_bytes` counts the gaps between arrays twice.
  """
  return (live_bytes(stats) + stats.temp_size_in_bytes) // 2


def live_bytes(stats) -> int:
  """The most that is in use at a time beside arguments and results."""
  outside = stats.argument_size_in_bytes + stats.output_size_in_bytes
  return stats.peak_memory_in_bytes - outside + stats.alias_size_in_bytes


def _memory(parts, machine, compiled, program, refused):
  state = parts.abstract_state
  known = dict(
    parameters=_sharded_bytes(state.params),
    optimizer=_sharded_bytes(state.opt_state),
    limit=machine.limit_bytes,
  )
  if refused:
    wanted = _SIZE.search(refused)
    unit = 2 ** {'M': 20, 'G': 30, 'T': 40}[wanted[2]]
    size = float(wanted[1]) * unit
    return Memory(**known, activations=0, temporary=size, total=size)
  stats = compiled.memory_analysis()
  temporary = heap_bytes(stats)
  total = temporary + stats.generated_code_size_in_bytes
  total += stats.argument_size_in_bytes + stats.output_size_in_bytes
  return Memory(
    **known,
    activations=kept_bytes(program),
    temporary=temporary,
    total=total - stats.alias_size_in_bytes,
  )


def _sharded_bytes(tree: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def kept_bytes(program: Program) -> float:
  """What loops of the forward pass stack up for the backward pass.

  A loop stacks by writing a slice into an array of as many slices as trips.
  """
  total = 0.0
  for computation in program.computations.values():
    for loop in computation.instructions.values():
      if loop.opcode != 'while' or not re.search(r'/jvp\(\w', loop.rest):
        continue
      if 'transpose(' in loop.rest or '/body/' in loop.rest:
        continue
      trips = program.trips(computation, loop)
      body = program.computations[loop.attribute(r'body=%([\w.\-]+)')]
      for part in program.fused(body):
        total += sum(
          i.bytes
          for i in part.instructions.values()
          if i.opcode == 'dynamic-update-slice' and i.arrays[0].dims[0] == trips
        )
  return total
