"""Compiles the grouped products for a TPU topology.

  python tests/kernels/aot_grouped_matmul.py v5e:2x2 [wide]
prints for each form and case the FLOPs and temporary bytes, as JSON. `wide`
compiles large shapes by tiles of any chip instead of those of this one.
"""

import functools
import sys

from topology import devices, report, tell

R, D, F, E = 16384, 2048, 1024, 64
ODD = 300, 100, 600, 7
CUT = 300, 300, 600, 7  # by tiles that leave a part of one on every axis
FINE = 25600, 4096, 448, 256


def main(topology, which='usual'):
  every = devices(topology)
  device = every[0]
  import jax
  import jax.numpy as jnp

  from pallas_kernels import chips
  from pallas_kernels.grouped_matmul import pallas_tpu
  from pallas_kernels.grouped_matmul.tile_shapes import TileShape

  here = jax.sharding.SingleDeviceSharding(device)

  def compiled(form, shape, dtype, **settings):
    r, d, f, e = shape
    array = functools.partial(jax.ShapeDtypeStruct, sharding=here)
    x, y = array((r, d), dtype), array((r, f), dtype)
    w, sizes = array((e, d, f), dtype), array((e,), jnp.int32)
    args = {'nn': (x, w), 'nt': (y, w), 'tn': (x, y)}[form]
    call = functools.partial(getattr(pallas_tpu, form), **settings)
    found = report(jax.jit(call).lower(*args, sizes).compile())
    return found | {'ideal_flops': 2 * r * d * f}

  chip = chips.of_kind(device.device_kind)
  tiles = TileShape(16, 128, 256)
  found = {}
  for form in ('nn', 'nt', 'tn'):
    if which == 'wide':
      for dtype in (jnp.bfloat16, jnp.float32):
        case = f'{form} {dtype.__name__}'
        found[case] = compiled(form, (R, D, F, E), dtype)
      found[f'{form} fine'] = compiled(form, FINE, jnp.bfloat16)
      continue
    found[f'{form} for the chip'] = compiled(
      form, (R, D, F, E), jnp.bfloat16, chip=chip
    )
    found[f'{form} cut'] = compiled(form, CUT, jnp.bfloat16, tiles=tiles)
    for dtype in (jnp.bfloat16, jnp.float32):
      found[f'{form} odd {dtype.__name__}'] = compiled(form, ODD, dtype)
  if which == 'usual':
    found['mesh'] = over_mesh(every)
  tell(found)


def over_mesh(devices):
  """All forms over four devices: each does a fourth of the work."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

  from pallas_kernels.grouped_matmul.api import grouped_matmul

  r, d, f, e = 4096, 512, 256, 32
  grid = np.array(devices).reshape(-1, 2)
  mesh = Mesh(grid, ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)

  def array(shape, spec, dtype=jnp.bfloat16):
    where = NamedSharding(mesh, PartitionSpec(spec))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  def both_ways(x, w, sizes, dy):
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes), x, w)
    return y, *pull(dy)

  rows = ('data', 'expert')
  args = (
    array((r, d), rows),
    array((e, d, f), 'expert'),
    array((e,), None, jnp.int32),
    array((r, f), rows),
  )
  with jax.set_mesh(mesh):
    found = report(jax.jit(both_ways).lower(*args).compile())
  return found | {'ideal_flops': 3 * 2 * r * d * f / grid.size}


if __name__ == '__main__':
  main(*sys.argv[1:])
