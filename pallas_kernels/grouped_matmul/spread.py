"""A product over the mesh in force: every device takes an equal run of rows.

Left to itself the compiler would have to partition the product, which it cannot
do with a kernel, and does with `ragged_dot` by multiplying every row by every
matrix. A run of sorted rows is itself sorted: it has the same groups, with
smaller sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def spread(form: str, call: Callable, a, b, sizes_E):
  """`call(a, b, sizes_E)`, with rows spread over the axes left to the compiler.

  Matrices are gathered to every device; their gradients are summed over all.
  Without a mesh, and inside `jax.shard_map`, it is the plain call.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind == AxisType.Auto
  )
  devices = 1
  for name in axes:
    devices *= mesh.shape[name]
  if devices == 1:
    return call(a, b, sizes_E)

  def own(a, b, sizes_E):
    rows = a.shape[0]
    ends_E = jnp.cumsum(sizes_E) - lax.axis_index(axes) * rows
    ends_E = jnp.clip(ends_E, 0, rows)
    out = call(a, b, jnp.diff(ends_E, prepend=0))
    return lax.psum(out, axes) if form == 'tn' else out

  rows = a.shape[0]
  both = form == 'tn'
  a = _padded(a, devices)
  out = jax.shard_map(
    own,
    in_specs=(P(axes), P(axes) if both else P(), P()),
    out_specs=P() if both else P(axes),
    axis_names=set(axes),
    check_vma=False,
  )(a, _padded(b, devices) if both else b, sizes_E)
  return out if both else out[:rows]


def _padded(a, step):
  """Rows of no group at the end, so that all devices have as many."""
  missing = -a.shape[0] % step
  return jnp.pad(a, ((0, missing), (0, 0))) if missing else a
