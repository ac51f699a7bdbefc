"""Compiles a layer of experts, its router included, for a TPU topology.

  python tests/kernels/aot_layer.py v5e:2x2 '1.4B n256' '7B n512'
tells, by layer and direction, what the compiler says it costs and what is
ideal. Matrices are f32 and tokens bf16.
"""

import sys


def main(topology, *names):
  # Before anything else imports jax.
  from topology import devices, tell

  device = devices(topology)[0]
  import jax

  from pallas_kernels import chips
  from pallas_kernels.expert_ffn.shapes import FINE_GRAINED, PUBLISHED

  layers = {**PUBLISHED, **{str(n): x for n, x in FINE_GRAINED.items()}}
  where = jax.sharding.SingleDeviceSharding(device)
  found = {}
  with chips.target(topology.split(':')[0]):
    for name in names or layers:
      for direction in ('forward', 'both'):
        found[f'{name}, {direction}'] = cost(
          layers[name], direction, where, chips.current('tpu').fast_bytes
        )
  tell(found)


def cost(layer, direction, where, fast_bytes):
  """Bytes and FLOPs of one direction; 'both' is forward and backward.

  `live_bytes` is the most that is in use at a time beside arguments and
  results. What is reserved, `heap_bytes`, can be more where the compiler
  packs arrays with gaps.
  """
  from moejax.aot import compiler
  from pallas_kernels.expert_ffn import memory

  backward = direction == 'both'
  compiled = compile_layer(layer, backward, where, 'bfloat16')
  stats = compiled.memory_analysis()
  problem = memory.Problem(layer)
  router = 2 * layer.tokens * layer.d * layer.experts
  ideal = layer.flops() + backward * layer.flops(backward=True)
  return {
    'flops': compiled.cost_analysis()['flops'],
    'ideal_flops': ideal + router * (3 if backward else 1),
    'live_bytes': compiler.live_bytes(stats),
    'heap_bytes': compiler.heap_bytes(stats),
    'model_bytes': memory.temporary(problem, backward),
    'least_model_bytes': memory.temporary(problem, backward, fast_bytes),
  }


def compile_layer(layer, backward, where, dtype):
  """The layer on tokens of `dtype`, compiled; forward, or both ways.

  What is returned is added to what is there, as in a residual stream or in
  sums of gradients: a result with memory of its own would serve for something
  else before it is there.
  """
  import jax
  import jax.numpy as jnp

  params, x, context, apply = build(layer, where, dtype)

  def forward(params, x, context):
    return x + apply(params, x, context)

  def both(sums, params, x, context):
    y, pull = jax.vjp(lambda params, x: apply(params, x, context), params, x)
    # The gradient of a layer depends on its output; this is the shortest way.
    return jax.tree.map(jnp.add, sums, pull(y))

  if backward:
    jitted = jax.jit(both, donate_argnums=0)
    lowered = jitted.lower((params, x), params, x, context)
  else:
    lowered = jax.jit(forward, donate_argnums=1).lower(params, x, context)
  return lowered.compile()


def build(layer, where, dtype):
  """Abstract parameters, tokens and context, and the layer as a function."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  from moejax import dispatch, experts, routers
  from moejax.moe import Moe
  from moejax.types import Context

  router = routers.Router(
    score=routers.scores.Linear(num_experts=layer.experts),
    k=layer.k,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  glu = experts.Glu(hidden=layer.n, num_experts=layer.experts)
  moe = Moe(router=router, dispatch=dispatch.Sort(), experts=glu)

  def here(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  x = here((1, layer.tokens, layer.d), dtype)
  ids = here((1, layer.tokens), jnp.int32)
  context = Context(ids, ids, ids, train=True)
  shapes = jax.eval_shape(moe.init, jax.random.key(0), x, context)
  params = jax.tree.map(
    lambda a: here(a.shape, a.dtype), nn.unbox(shapes['params'])
  )

  def apply(params, x, context):
    return moe.apply({'params': params}, x, context)

  return params, x, context, apply


if __name__ == '__main__':
  main(*sys.argv[1:])
