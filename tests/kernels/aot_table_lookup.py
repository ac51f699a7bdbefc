"""Compiles lookups in large tables for a TPU topology.

  python tests/kernels/aot_table_lookup.py v5e:2x4
prints for each case what tests/topology.py reports, and its kernels, as JSON.
Of the cuts over eight devices, `value` has the tables' columns cut, `slots`
their rows; the tokens are cut over all devices. What these send is beside the
formula of one round.
"""

import sys

from topology import devices, report, tell


def main(topology):
  found = devices(topology)

  import jax
  import jax.numpy as jnp
  from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

  from moejax import sharding
  from moejax.aot.collectives import bytes_by_kind
  from moejax.memory import exchange, tables
  from pallas_kernels.table_lookup.api import table_lookup, table_products
  from pallas_kernels.table_lookup.shapes import PUBLISHED

  def step(look, mul):
    def run(pre, values, ids, weights, x, dy):
      def f(pre, values, weights, x):
        hidden = mul(pre, ids, x)
        return look(values, ids, weights * hidden[..., None])

      y, pull = jax.vjp(f, pre, values, weights, x)
      return y, pull(dy)

    return run

  def compiled(f, shape, where):
    n, k, slots, d, parts = shape
    sizes = [(slots, d)] * 2 + [(n, k), (n, k, parts), (n, d), (n, d)]
    kinds = [jnp.float32] * 2 + [jnp.int32] + [jnp.float32] * 3
    args = (
      jax.ShapeDtypeStruct(size, kind, sharding=where[i > 1])
      for i, (size, kind) in enumerate(zip(sizes, kinds, strict=True))
    )
    made = jax.jit(f).lower(*args).compile()
    text = made.as_text()
    kernels = text.count('custom_call_target="tpu_custom_call"')
    return report(made) | {'kernels': kernels, 'sent': bytes_by_kind(text)}

  one = jax.sharding.SingleDeviceSharding(found[0])
  cases = {
    name: compiled(step(table_lookup, table_products), shape, (one, one))
    for name, shape in PUBLISHED.items()
  }
  mesh = Mesh([found[:8]], ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
  # Several steps: of one alone, both directions would share what they send.
  exchange.STEP_BYTES = 2 * 2**20
  specs = {'value': (None, 'expert'), 'slots': ('expert', None)}
  for cut, spec in specs.items():
    rules = (('batch', ('data', 'expert')), (cut, 'expert'))
    tokens = PartitionSpec(('data', 'expert'))
    where = [NamedSharding(mesh, s) for s in (PartitionSpec(*spec), tokens)]
    with sharding.use(mesh, rules):
      split = step(tables.lookup, tables.products)
      cases[cut] = compiled(split, PUBLISHED['1B'], where)
  n, k, _, d, parts = PUBLISHED['1B']
  sizes = exchange.Sizes(ranks=8, tokens=n // 8, k=k, dim=d, parts=parts)
  both = sizes.lookup_bytes(1), sizes.products_bytes(1)
  cases['slots']['formula'] = {
    kind: sum(sent[kind] for sent in both) for kind in both[0]
  }
  tell(cases)


if __name__ == '__main__':
  main(*sys.argv[1:])
