"""Compiles the grouped products for a TPU topology.

  python tests/kernels/aot_grouped_matmul.py v5e:2x2
prints for each form and dtype the FLOPs and temporary bytes, as JSON.
"""

import functools
import sys

from topology import devices, report, tell

R, D, F, E = 16384, 2048, 1024, 64
ODD = 300, 100, 600, 7
CUT = 300, 300, 600, 7  # by tiles that leave a part of one on every axis
FINE = 25600, 4096, 448, 256


def main(topology):
  device = devices(topology)[0]
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
    for dtype in (jnp.bfloat16, jnp.float32):
      case = f'{form} {dtype.__name__}'
      found[case] = compiled(form, (R, D, F, E), dtype)
    found[f'{form} for the chip'] = compiled(
      form, (R, D, F, E), jnp.bfloat16, chip=chip
    )
    found[f'{form} cut'] = compiled(form, CUT, jnp.bfloat16, tiles=tiles)
    found[f'{form} odd'] = compiled(form, ODD, jnp.bfloat16)
    found[f'{form} fine'] = compiled(form, FINE, jnp.bfloat16)
  tell(found)


if __name__ == '__main__':
  main(*sys.argv[1:])
