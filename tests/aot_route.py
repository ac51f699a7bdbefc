"""Compiles routing, forward and backward, for a TPU topology.

  python tests/aot_route.py v5e:2x2
prints for each case what tests/topology.py reports, and its kernels, as JSON.
"""

import sys

from topology import devices, report, tell

# Tokens, experts, choices, and what is asked of the selection.
CASES = {
  'groups': (32768, 256, 16, dict(affinity='sigmoid', weighing='sigmoid')),
  'odd': (1001, 100, 3, dict(affinity='softmax', normalise=False)),
  'one token': (1, 56, 8, {}),
}


def main(topology):
  device = devices(topology)[0]

  import jax
  import jax.numpy as jnp

  from pallas_kernels.route.api import permutation, top_k_route
  from pallas_kernels.route.options import Groups

  where = jax.sharding.SingleDeviceSharding(device)
  found = {}
  for name, (n, experts, k, fields) in CASES.items():
    if name == 'groups':
      fields = fields | dict(groups=Groups(8, 4))

    def layer(logits, bias, valid, k=k, experts=experts, fields=fields):
      def weights(logits):
        ids, weights, counts = top_k_route(
          logits, k, bias_E=bias, valid_N=valid, **fields
        )
        return weights, (permutation(ids, experts), counts)

      weights, pull, rest = jax.vjp(weights, logits, has_aux=True)
      return weights, rest, pull(weights)

    args = (
      jax.ShapeDtypeStruct(shape, dtype, sharding=where)
      for shape, dtype in (
        ((n, experts), jnp.float32),
        ((experts,), jnp.float32),
        ((n,), jnp.bool_),
      )
    )
    compiled = jax.jit(layer).lower(*args).compile()
    kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
    found[name] = report(compiled) | {'kernels': kernels}
  tell(found)


if __name__ == '__main__':
  main(*sys.argv[1:])
