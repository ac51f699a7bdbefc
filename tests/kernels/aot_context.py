"""Counts what devices of a TPU topology send each other to share a sequence.

  python tests/kernels/aot_context.py v5e:2x4
prints, for the delta rule, a rule that only adds, and a whole mixer, the bytes
that a device gets in each kind of collective, as JSON.
"""

import collections
import math
import re
import sys

BATCH, TIME, HEADS, KEY, VALUE, WIDTH = 4, 4096, 4, 64, 128, 256
KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'collective-permute',
  'all-to-all',
)
BYTES = {'f32': 4, 'bf16': 2, 's32': 4, 'u32': 4, 'pred': 1}


def main(topology):
  # On the path of a process of its own; the test reads the sizes above.
  from topology import devices, tell

  found = devices(topology)
  import numpy as np
  from jax.sharding import AxisType, Mesh

  grid = np.array(found).reshape(2, -1)
  mesh = Mesh(grid, ('data', 'context'), axis_types=(AxisType.Auto,) * 2)
  told = {}
  for name, (f, args) in {**operations(), 'mixer': mixer()}.items():
    for way, g in {'forward': f, 'gradient': gradient(f)}.items():
      told[f'{name} {way}'] = collectives(compiled(g, args, mesh))
  tell(told)


def gradient(f):
  import jax

  def run(*args):
    def total(args):
      return sum((y.astype('float32') ** 2).sum() for y in f(*args))

    return jax.grad(total)(args)

  return run


def compiled(f, args, mesh):
  import jax

  from moejax import sharding

  specs = {3: ('batch', 'time', None), 2: ('batch', 'time')}
  specs[4] = (*specs[3], None)

  def placed(path, leaf):
    names = () if 'params' in jax.tree_util.keystr(path) else specs[leaf.ndim]
    where = sharding.shardings(names, mesh, sharding.RULES)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  args = jax.tree_util.tree_map_with_path(placed, args)
  with sharding.use(mesh, sharding.RULES):
    return jax.jit(f).lower(*args).compile().as_text()


def operations():
  import jax
  import jax.numpy as jnp

  from moejax.mixers import rules
  from moejax.mixers.rules.rule import Inputs, run

  def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((BATCH, TIME, *shape), dtype)

  q, v = array(HEADS, KEY), array(HEADS, VALUE)
  decay, beta = array(HEADS), array(HEADS)

  def delta(q, k, v, decay, beta):
    inputs = Inputs(q, k, v, decay, beta)
    return run(rules.gated_delta, inputs, None, None)[:1]

  def linear(q, k, v, decay):
    inputs = Inputs(q, k, v, decay)
    return run(rules.retention, inputs, None, None)[:1]

  return {
    'delta': (delta, (q, q, v, decay, beta)),
    'linear': (linear, (q, q, v, decay)),
  }


def mixer():
  import flax.linen as nn
  import jax
  import jax.numpy as jnp

  from moejax import mixers
  from moejax.types import Context

  module = mixers.LinearAttention(
    heads=HEADS,
    rule=mixers.rules.gated_delta,
    decay=mixers.decays.Softplus(),
    write=mixers.writes.Sigmoid(),
  )
  x = jax.ShapeDtypeStruct((BATCH, TIME, WIDTH), jnp.float32)
  tokens = jax.ShapeDtypeStruct((BATCH, TIME), jnp.int32)
  ctx = Context(tokens, tokens, tokens)
  made = jax.eval_shape(module.init, jax.random.key(0), x, ctx)

  def call(params, x):
    ones = jnp.ones((BATCH, TIME), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(TIME), (BATCH, TIME))
    return module.apply(params, x, Context(ones, positions, ones))[:1]

  return call, (nn.unbox(made), x)


def collectives(text):
  """{kind: bytes of the results that a device gets}."""
  found = collections.Counter()
  pattern = rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\('
  for line in text.splitlines():
    match = re.search(pattern, line)
    if match:
      kind = match[2]
      arrays = re.findall(r'(\w+)\[([\d,]*)\]', match[1])
      if '-start(' in line:  # the operand, the result, what it waits for
        arrays = arrays[1:2]
      for dtype, shape in arrays:
        size = math.prod(int(n) for n in shape.split(',') if n)
        found[kind] += size * BYTES[dtype]
  return dict(found)


if __name__ == '__main__':
  main(*sys.argv[1:])
