"""Compiles attention, forward and backward, for a TPU topology.

  python tests/kernels/aot_attention.py v5e:2x2
prints for each case what tests/topology.py reports, and its kernels, as JSON.
"""

import sys

from topology import devices, report, tell

# B, T, H, G, K, V, window
CASES = {
  'grouped': (1, 2048, 8, 2, 128, 128, None),
  'latent': (1, 2048, 4, 4, 192, 128, None),
  'window': (1, 2048, 4, 2, 64, 64, 300),
}


def main(topology):
  device = devices(topology)[0]

  import jax
  import jax.numpy as jnp

  from pallas_kernels.attention.api import attention

  where = jax.sharding.SingleDeviceSharding(device)
  found = {}
  for name, (b, t, h, g, k, v, window) in CASES.items():

    def both(qkv, positions, segments, window=window):
      y, pull = jax.vjp(
        lambda qkv: attention(*qkv, positions, segments, window=window), qkv
      )
      return y, pull(y)

    def of(*shape, dtype=jnp.bfloat16):
      return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    ints = of(b, t, dtype=jnp.int32)
    args = (of(b, t, h, k), of(b, t, g, k), of(b, t, g, v)), ints, ints
    compiled = jax.jit(both).lower(*args).compile()
    kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
    found[name] = report(compiled) | {'kernels': kernels}
  tell(found)


if __name__ == '__main__':
  main(*sys.argv[1:])
