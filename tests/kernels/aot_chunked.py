"""Compiles the chunked recurrences for a TPU topology.

  python tests/kernels/aot_chunked.py v5e:2x2 delta,channel,128,64,bfloat16
tells by case (operation, decay, width, chunk, dtype) and direction what the
compiler says it costs, beside the counts of the kernels, as JSON; `scan` is a
scan over two layers. Without cases: those of `CASES`.
"""

import functools
import math
import sys
import time

from topology import devices, report, tell

B, T, H = 1, 8192, 16
CASES = (
  *(
    f'delta,channel,{d},{c},bfloat16' for d in (64, 128, 256) for c in (64, 128)
  ),
  'delta,head,128,64,bfloat16',
  'delta,none,128,64,bfloat16',
  'delta,channel,128,64,float32',
  'delta,channel,256,128,float32',
  'linear,channel,128,64,bfloat16',
  'linear,head,128,64,bfloat16',
  'scan',
)
# Passes of a product at the highest precision through a matrix unit of bf16.
FULL_PASSES = 6


def main(topology, *cases):
  device = devices(topology)[0]
  import jax

  from pallas_kernels import chips

  where = jax.sharding.SingleDeviceSharding(device)
  chip = chips.of_kind(device.device_kind)
  found = {}
  for case in cases or CASES:
    if case == 'scan':
      found[case] = report(over_layers(where))
      continue
    for direction in ('forward', 'both'):
      found[f'{case},{direction}'] = cost(case, direction, where, chip)
  tell(found)


def cost(case, direction, where, chip):
  """Of one direction; `both` is forward and backward."""
  import jax

  call, args = build(case, direction, where)
  start = time.time()
  compiled = jax.jit(call).lower(*args).compile()
  seconds = time.time() - start
  kernels = list(calls(jax.make_jaxpr(call)(*args).jaxpr))
  return report(compiled) | {
    'tokens': B * T * H,
    'counted_flops': sum(k['cost_estimate'].flops for k in kernels),
    'pass_flops': sum(map(pass_flops, kernels)),
    'compile_s': seconds,
    'roofline_s': sum(
      max(
        pass_flops(k) / chip.flops_per_s,
        k['cost_estimate'].bytes_accessed / chip.memory_bytes_per_s,
      )
      for k in kernels
    ),
    'kernels': compiled.as_text().count('custom_call_target="tpu_custom_call"'),
  }


def build(case, direction, where):
  """The function of a case and its abstract arguments.

  What belongs to tokens comes and goes as [B, T, H D], as projections make it.
  """
  import jax
  import jax.numpy as jnp

  from pallas_kernels.chunked_delta import pallas_tpu as delta
  from pallas_kernels.chunked_linear import pallas_tpu as linear

  op, decay, width, chunk, dtype = case.split(',')
  width, dtype = int(width), jnp.dtype(dtype)
  array = functools.partial(jax.ShapeDtypeStruct, sharding=where)
  x = array((B, T, H * width), dtype)
  wide = array((B, T, H * width), jnp.float32)
  number = array((B, T, H), jnp.float32)
  state = array((B, H, width, width), jnp.float32)
  log_decay = {'channel': wide, 'head': number, 'none': None}[decay]
  args = (x, x, x, log_decay, *([number] if op == 'delta' else []), state)
  found = {'delta': delta, 'linear': linear}[op]
  static = dict(scale=width**-0.5, chunk=int(chunk))

  def by_head(x):
    wide = x.ndim == 3 and x.shape[2] > H
    return x.reshape(B, T, H, width) if wide else x

  def flat(x):
    return x.reshape(B, T, -1) if x.ndim == 4 and x.shape[1] == T else x

  def forward(*args):
    args = jax.tree.map(by_head, args)
    return jax.tree.map(flat, found.forward(*args, keep=False, **static)[0])

  def both(args, d_outs):
    args, d_outs = jax.tree.map(by_head, (args, d_outs))
    outs, kept = found.forward(*args, keep=True, **static)
    d_args = found.backward(args, kept, d_outs, **static)
    return jax.tree.map(flat, (outs, d_args))

  if direction == 'forward':
    return forward, args
  return both, (args, (x, state))


def calls(jaxpr):
  """The parameters of all kernels."""
  from jax.extend.core import jaxprs_in_params

  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'pallas_call':
      yield eqn.params
    else:
      for inner in jaxprs_in_params(eqn.params):
        yield from calls(inner)


def pass_flops(params):
  """FLOPs of the matrix unit, which multiplies bf16, for one kernel."""
  return math.prod(params['grid_mapping'].grid) * _passes(params['jaxpr'])


def _passes(jaxpr):
  from jax.extend.core import jaxprs_in_params

  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      left, right = (x.aval for x in eqn.invars)
      (contracted,), _ = eqn.params['dimension_numbers'][0]
      flops = 2 * left.size * right.size // left.shape[contracted]
      total += flops * (FULL_PASSES if left.dtype == 'float32' else 1)
    else:
      total += sum(map(_passes, jaxprs_in_params(eqn.params)))
  return total


def over_layers(where):
  """A training step of two layers, recomputed, as a scan; by the choice."""
  import jax
  import jax.numpy as jnp

  from pallas_kernels.chunked_delta.api import chunked_delta
  from pallas_kernels.chunked_linear.api import chunked_linear

  def layer(x_BTHK, w_KK):
    q = k = jnp.einsum('bthk,kl->bthl', x_BTHK, w_KK.astype(x_BTHK.dtype))
    v = jnp.repeat(q, 2, axis=2)  # two value heads to a key head
    log_decay = jax.nn.log_sigmoid(v.astype(jnp.float32))
    beta_BTG = jax.nn.sigmoid(log_decay[..., 0])
    y, _ = chunked_delta(q, k, v, log_decay, beta_BTG)
    z, _ = chunked_linear(q, k, v, log_decay[..., 0])
    return x_BTHK + (y + z)[:, :, ::2], None

  def loss(w_LKK, x_BTHK):
    y, _ = jax.lax.scan(jax.checkpoint(layer), x_BTHK, w_LKK)
    return jnp.square(y.astype(jnp.float32)).mean()

  w = jax.ShapeDtypeStruct((2, 128, 128), jnp.float32, sharding=where)
  x = jax.ShapeDtypeStruct((1, 1000, 2, 128), jnp.bfloat16, sharding=where)
  compiled = jax.jit(jax.grad(loss)).lower(w, x).compile()
  names = ('chunked_delta_backward', 'chunked_linear_backward')
  assert all(name in compiled.as_text() for name in names)
  return compiled


if __name__ == '__main__':
  main(*sys.argv[1:])
