"""The mesh, and where each logical axis lives on it."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pallas_kernels import chips

# Logical axis to mesh axes, None for an axis that stays whole. Rules whose
# name begins with "moe/" replace the others in layers of experts: those fold
# the same devices in their own way.
RULES = (
  ('batch', ('data', 'fsdp', 'expert', 'pipe')),
  ('expert', 'expert'),
  ('time', 'context'),
  ('embed', 'fsdp'),
  ('heads', 'tensor'),
  ('mlp', 'tensor'),
  ('vocab', 'tensor'),
  ('kv', None),
  ('latent', None),
  ('layers', 'pipe'),
  ('memory', None),
  ('router', None),
  ('slots', None),
  ('value', None),
)
MOE = 'moe/'
# Logical axes of an array with tokens, of one with rows, of one with neither.
TOKENS, ROWS, WHOLE = ('batch', 'time'), ('batch',), ()
# And of one with the heads of tokens.
HEADS = ('batch', 'time', 'heads')

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]


def mesh_sizes(axes: Mapping[str, int], num_devices: int) -> dict[str, int]:
  """Resolves the axis of size -1, if any, to what the others leave.

  Raises:
    ValueError: if the sizes do not make up the devices.
  """
  sizes = dict(axes)
  free = [name for name, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  shown = ' x '.join(
    f'{name}={size}' for name, size in sizes.items() if size != 1
  )
  if any(size < 1 and size != -1 for size in sizes.values()) or len(free) > 1:
    raise ValueError(
      f'mesh {shown}: sizes are positive, and at most one may be -1 (all '
      'that the others leave); correct config.mesh.'
    )
  if num_devices % fixed or not (free or num_devices == fixed):
    several = 'a multiple of ' if free else ''
    raise ValueError(
      f'mesh {shown or 1} needs {several}{fixed} devices, found '
      f'{num_devices}; set config.mesh so that the product of its sizes is '
      'that number.'
    )
  if free:
    sizes[free[0]] = num_devices // fixed
  return sizes


def make_mesh(axes: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
  """A mesh over `devices`, sharded by the compiler where not told.

  Devices of a torus are placed so that those of an axis are neighbours.

  Args:
    axes: sizes by name.
    devices: None for all that are here.
  """
  count = jax.device_count() if devices is None else len(devices)
  sizes = mesh_sizes(axes, count)
  grid = mesh_utils.create_device_mesh(
    tuple(sizes.values()),
    jax.devices()[:count] if devices is None else devices,
    allow_split_physical_axes=True,
  )
  return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules) -> Iterator[None]:
  """Makes `mesh`, its chip and `rules` those of the code inside.

  The chip is read off the mesh, which may be of a machine that is not here.
  """
  chip = chips.of_kind(mesh.devices.flat[0].device_kind)
  kernels = chips.target(chip) if chip else contextlib.nullcontext()
  logical = nn.logical_axis_rules(_known(rules, mesh.axis_names))
  with kernels, jax.set_mesh(mesh), logical:
    yield


def shardings(names: Any, mesh: Mesh, rules: Rules) -> Any:
  """NamedShardings for a tree of tuples of logical axis names."""
  rules = _known(rules, mesh.axis_names)

  def one(axes):
    spec = nn.logical_to_mesh_axes(axes, rules_of(axes, rules))
    return NamedSharding(mesh, spec)

  return jax.tree.map(one, names, is_leaf=is_axes)


def spec(
  axes: Sequence[str | None], rules: Rules, mesh: Sequence[str]
) -> list[tuple[str, ...]]:
  """The mesh axes over which each axis of an array is cut."""
  found = nn.logical_to_mesh_axes(tuple(axes), _known(rules, mesh))
  return [(to,) if isinstance(to, str) else to or () for to in found]


def rules_of(axes: Sequence[str | None], rules: Rules) -> Rules:
  """The rules that an array with these logical axes goes by."""
  return folded(rules) if 'expert' in axes else rules


def folded(rules: Rules) -> Rules:
  """The rules of a layer of experts."""
  own = {n.removeprefix(MOE): to for n, to in rules if n.startswith(MOE)}
  return tuple((name, own.get(name, to)) for name, to in rules)


def layer_of_experts() -> contextlib.AbstractContextManager:
  """Puts the rules of a layer of experts in force, for the code inside."""
  return nn.logical_axis_rules(folded(nn.get_logical_axis_rules()))


def less(axes: Sequence[str]) -> contextlib.AbstractContextManager:
  """Puts the rules in force less some mesh axes, for the code inside."""
  mesh = jax.sharding.get_abstract_mesh()
  left = [name for name in mesh.axis_names if name not in axes]
  return nn.logical_axis_rules(_known(nn.get_logical_axis_rules(), left))


def is_axes(node: Any) -> bool:
  """Whether a tree node is the axis names of one array, a leaf."""
  # Optimiser states are named tuples: they are no leaves.
  return type(node) is tuple and all(
    name is None or isinstance(name, str) for name in node
  )


def batch_sharding(mesh: Mesh, rules: Rules) -> NamedSharding:
  """Where [B, T] arrays live: rows over 'batch', tokens over 'time'."""
  return shardings(TOKENS, mesh, rules)


def put_batch(
  batch: Mapping[str, np.ndarray], sharding: NamedSharding
) -> dict[str, jax.Array]:
  """Global arrays out of this process's rows."""
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }


def cut_rows(a: jax.Array, lead: Sequence = ()) -> jax.Array:
  """Says how the mesh in force cuts rows and tokens: [*lead, B, T, ...].

  Args:
    a: an array. What the mesh does not cut evenly is left to the compiler, as
      are later axes.
    lead: mesh axes of the axes in front of them.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return a
  free = PartitionSpec.UNCONSTRAINED
  sizes = a.shape[len(lead) :]
  rest = [free] * len(sizes)
  for i, name in enumerate(TOKENS):
    axes = axes_of(name)
    if sizes[i] % size_of(axes) == 0:
      rest[i] = axes or None
  return jax.lax.with_sharding_constraint(a, PartitionSpec(*lead, *rest))


def row_shard(where: NamedSharding, rows: int) -> tuple[int, int]:
  """(index, count): which of `count` equal shards of rows this process reads.

  Processes whose devices share their rows read the same ones.

  Raises:
    ValueError: the devices of this process have rows that are no neighbours.
  """
  places = where.addressable_devices_indices_map((rows, 1)).values()
  bounds = sorted({place[0].indices(rows)[:2] for place in places})
  start, stop = bounds[0][0], bounds[-1][1]
  size = stop - start
  own = sum(high - low for low, high in bounds)
  if own != size or rows % size or start % size:
    raise ValueError(
      f'the devices of process {jax.process_index()} hold {own} of {rows} '
      f'rows, from {start} to {stop}, which are no equal share of neighbouring '
      'ones; give the devices of a process to the later axes of config.mesh.'
    )
  return start // size, rows // size


def by_device(
  f: Callable,
  args: Sequence[Any],
  axes: Sequence[tuple],
  outs: Any,
  least: int = 1,
) -> Any:
  """`f(axis, *args)`, called by every device for its own rows and tokens.

  `axis` is the mesh axis that cuts time, for `f` to hand on what later tokens
  need; None if none does. Mesh and rules are those in force. What they do not
  cut into equal parts stays whole, and without anything to cut, or without a
  mesh, it is a plain call.

  Args:
    f: a function of local arrays. It must give the same on every device over
      which a result is not cut.
    args: trees of arrays, or None.
    axes: for each, TOKENS, ROWS, HEADS or WHOLE: its first logical axes.
    outs: likewise for the results, a tree like `f`'s.
    least: tokens that a device must have for time to be cut.
  """
  sizes = {}
  for arg, names in zip(args, axes, strict=True):
    for leaf in jax.tree.leaves(arg):
      for name, size in zip(names, leaf.shape, strict=False):
        # What divides two sizes divides their common divisor.
        sizes[name] = math.gcd(size, sizes.get(name, 0))
  auto, over = _cuts(sizes, {'time': least})
  used = {name for names in axes for name in names if name is not None}
  if not any(over[name] for name in used):
    return f(None, *args)

  def spec(names):
    return PartitionSpec(*(name and over[name] for name in names))

  call = jax.shard_map(
    functools.partial(f, over['time'] if 'time' in used else None),
    in_specs=tuple(map(spec, axes)),
    out_specs=jax.tree.map(spec, outs, is_leaf=is_axes),
    axis_names=auto,
    check_vma=False,
  )
  return call(*args)


def cuts(name: str) -> bool:
  """Whether the mesh in force cuts 'batch', 'time' or 'heads'."""
  return _cuts({}, {})[1][name] is not None


def auto_axes() -> set[str]:
  """The axes of the mesh in force that are left to the compiler."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
  return {name for name, kind in kinds if kind == AxisType.Auto}


def axes_of(name: str) -> tuple[str, ...]:
  """The axes of the mesh in force over which a logical axis is cut."""
  mesh, auto = jax.sharding.get_abstract_mesh(), auto_axes()
  (axes,) = nn.logical_to_mesh_axes((name,))
  axes = (axes,) if isinstance(axes, str) else axes or ()
  return tuple(a for a in axes if a in auto and mesh.shape[a] > 1)


def size_of(axes: Sequence[str]) -> int:
  """How many devices axes of the mesh in force have together."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in axes)


def check_divides(name: str, size: int, axes: Sequence[str]) -> None:
  """Raises: ValueError unless the axes, one of them, cut `size` evenly."""
  if len(axes) > 1 or size % size_of(axes):
    raise ValueError(
      f'the mesh cuts {name!r} of size {size} into {size_of(axes)} parts over '
      f'{", ".join(axes)}; choose one axis and a multiple of its size.'
    )


def _cuts(sizes, least):
  """Mesh axes left to the compiler; those over which each size is cut."""

  def over(name):
    axes = axes_of(name)
    parts = size_of(axes)
    size = sizes.get(name, parts)
    if not axes or size % parts or size // parts < least.get(name, 1):
      return None
    return axes if len(axes) > 1 else axes[0]

  return auto_axes(), {name: over(name) for name in ('batch', 'time', 'heads')}


def shards(axes: Mapping[str, int], rules: Rules, name: str = 'batch') -> int:
  """Into how many parts the mesh cuts a logical axis."""
  over = dict(rules).get(name) or ()
  over = (over,) if isinstance(over, str) else over
  return math.prod(axes.get(axis, 1) for axis in over)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def _known(rules: Rules, names: Sequence[str]):
  """The rules less the mesh axes that a mesh does not have."""

  def only(target):
    if target is None or isinstance(target, str):
      return target if target in names else None
    return tuple(axis for axis in target if axis in names) or None

  return tuple((name, only(target)) for name, target in rules)
