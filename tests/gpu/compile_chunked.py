"""Compiles the chunked GPU kernels for an H100, on a machine without one.

  python tests/gpu/compile_chunked.py
prints a JSON object for each case: its name, what the program keeps in memory
for a while, and for each kernel what tests/gpu/h100.py reads from its code.
With `--markdown` it prints a table of the kernels instead.
"""

import functools
import json
import os
import pathlib
import sys

os.environ.update(
  JAX_PLATFORMS='cpu',
  JAX_SKIP_CUDA_CONSTRAINTS_CHECK='1',
  TF_CPP_MIN_LOG_LEVEL='2',
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1])]

import h100  # noqa: E402

from pallas_kernels.chunked.shapes import PUBLISHED, Shape  # noqa: E402
from pallas_kernels.chunked_delta.api import chunked_delta  # noqa: E402
from pallas_kernels.chunked_linear.api import chunked_linear  # noqa: E402

ODD = Shape(B=2, T=1000, H=2, K=100, G=4, V=60)
WIDE = Shape(B=1, T=4096, H=8, K=256, G=8, V=256)
of = jax.ShapeDtypeStruct


def gradient_case(shape, decay, delta, dtype):
  """The public operation and its gradients, as a model calls it."""
  B, T, G = shape.B, shape.T, shape.G
  q, v = of((B, T, shape.H, shape.K), dtype), of((B, T, G, shape.V), dtype)
  gates = {'head': (B, T, G), 'channel': (B, T, G, shape.K)}.get(decay)
  args = [q, q, v, None if gates is None else of(gates, jnp.float32)]
  if delta:
    args.append(of((B, T, G), jnp.float32))
  op = functools.partial(
    chunked_delta if delta else chunked_linear, implementation='triton'
  )
  state = of((B, G, shape.K, shape.V), jnp.float32)

  def both(args, state, d_y, d_state):
    outs, pull = jax.vjp(lambda a, s: op(*a, state_BGKV=s), tuple(args), state)
    return outs, pull((d_y, d_state))

  return both, tuple(args), state, v, state


def cases():
  """(family, shape, decay, delta, dtype)"""
  for decay in ('channel', 'head', None):
    for delta in (True, False):
      yield 'bf16', PUBLISHED['one long'], decay, delta, jnp.bfloat16
  for decay in ('channel', 'head'):
    yield 'odd', ODD, decay, True, jnp.bfloat16
    yield 'odd', WIDE, decay, True, jnp.bfloat16
    yield 'odd', ODD, decay, True, jnp.float32


def main(markdown):
  (device,) = h100.devices()
  for family, shape, decay, delta, dtype in cases():
    case = gradient_case(shape, decay, delta, dtype)
    compiled, kernels = h100.compile_for(device, *case)
    name = f'{"delta" if delta else "linear"} {decay} {jnp.dtype(dtype).name}'
    found = {
      'family': family,
      'case': f'{name} K={shape.K}',
      'delta': delta,
      'decay': decay,
      'tokens': shape.tokens,
      'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
      'kernels': [k for k in kernels if k['kernel'].startswith('chunk_')],
    }
    if not markdown:
      print(json.dumps(found), flush=True)
      continue
    for k in found['kernels']:
      row = [found['case'], k['kernel'], k['registers'], k.get('frame', 0)]
      row += [k['shared'], k.get('wgmma', 0), k.get('mma', 0)]
      print('|', ' | '.join(map(str, row)), '|', flush=True)


if __name__ == '__main__':
  main('--markdown' in sys.argv)
