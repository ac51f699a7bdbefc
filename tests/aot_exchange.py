"""Compiles an exchange, forward and backward, for a TPU topology.

  python tests/aot_exchange.py v5e:2x4 RaggedAllToAll 1.0 2
prints what the program sends by kind of collective, beside the formula, as
JSON. The numbers are `room` and `stages`; `Ring` takes stages alone.
"""

import sys

from topology import devices, report, tell

TOKENS, K, D, F, E = 1024, 8, 512, 256, 64


def main(topology, kind, *numbers):
  found = devices(topology)
  import numpy as np
  from jax.sharding import AxisType, Mesh

  grid = np.array(found).reshape(1, -1)
  mesh = Mesh(grid, ('data', 'expert'), axis_types=(AxisType.Auto,) * 2)
  from moejax import dispatch
  from moejax.aot.collectives import bytes_by_kind
  from moejax.dispatch import traffic

  names = ('stages',) if kind == 'Ring' else ('room', 'stages')
  values = [float(n) if '.' in n else int(n) for n in numbers]
  dispatcher = getattr(dispatch, kind)(**dict(zip(names, values, strict=True)))
  compiled = compile_layer(dispatcher, mesh)
  layer = traffic.Layer(
    tokens=TOKENS, k=K, width=D, num_experts=E, ranks=len(found)
  )
  text = compiled.as_text()
  more = {} if kind == 'Ring' else {'num_rounds': 2}
  tell(
    report(compiled)
    | {
      'sent': bytes_by_kind(text),
      'formula': dispatcher.collective_bytes(layer, **more),
      'asynchronous': text.count('-start('),
      'matrix_bytes': E * D * F * 4,
    }
  )


def compile_layer(dispatcher, mesh):
  import jax
  import jax.numpy as jnp
  from jax.sharding import NamedSharding, PartitionSpec

  from moejax import experts, sharding
  from moejax.types import Chosen

  module = experts.Glu(hidden=F, num_experts=E)

  def spec(shape, dtype, *axes):
    where = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  def run(x, ids, weights, logits, matrices, upstream):
    def forward(x, weights, matrices):
      chosen = Chosen(ids, weights, logits)
      return dispatcher.apply(
        {}, chosen, x, lambda rows: module.apply({'params': matrices}, rows)
      )

    y, pull = jax.vjp(forward, x, weights, matrices)
    return y, pull(upstream)

  n = TOKENS * mesh.devices.size
  x = spec((n, D), jnp.bfloat16, 'expert')
  up = spec((E, D, F), jnp.float32, 'expert')
  args = (
    x,
    spec((n, K), jnp.int32, 'expert'),
    spec((n, K), jnp.float32, 'expert'),
    spec((n, E), jnp.float32, 'expert'),
    {
      'gate': up,
      'up': up,
      'down': spec((E, F, D), jnp.float32, 'expert'),
    },
    x,
  )
  with sharding.use(mesh, sharding.RULES):
    return jax.jit(run).lower(*args).compile()


if __name__ == '__main__':
  main(*sys.argv[1:])
