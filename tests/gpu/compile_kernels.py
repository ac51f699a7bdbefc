"""Compiles the GPU kernels for an H100, on a machine without one.

  python tests/gpu/compile_kernels.py
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
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parents[1])]

import h100  # noqa: E402

from pallas_kernels.expert_ffn import pallas_gpu as layer  # noqa: E402
from pallas_kernels.expert_ffn.api import expert_ffn  # noqa: E402
from pallas_kernels.grouped_matmul import library_gpu  # noqa: E402
from pallas_kernels.grouped_matmul import pallas_gpu as grouped  # noqa: E402
from pallas_kernels.grouped_matmul.gpu_tiles import Tiles  # noqa: E402
from pallas_kernels.route.plan import Plan  # noqa: E402

# T, d, n, E, K of arXiv 2512.14080, and two that divide no tile.
SHAPES = {
  '1.4B': (40960, 768, 256, 128, 8),
  '7B': (24576, 1536, 256, 128, 8),
  '7B coarse': (24576, 1536, 1024, 32, 2),
  '30B': (32768, 4096, 256, 256, 16),
  '120B': (32768, 4096, 512, 256, 16),
  'odd': (3000, 100, 600, 8, 2),
  'few tokens': (64, 1536, 256, 128, 8),
}
MATRIX_KERNELS = ('up', 'down', 'dh', 'dx', 'dw_down', 'dw_first')
of = jax.ShapeDtypeStruct


def grouped_cases(shape, dtype):
  """name -> function, arguments: each form as up and as down use it."""
  t, d, n, e, k = SHAPES[shape]
  sizes = of((e,), jnp.int32)
  wide, narrow = of((t * k, d), dtype), of((t * k, n), dtype)
  first, last = of((e, d, n), dtype), of((e, n, d), dtype)
  return {
    'nn up': (grouped.nn, wide, first, sizes),
    'nn down': (grouped.nn, narrow, last, sizes),
    'nt up': (grouped.nt, narrow, first, sizes),
    'nt down': (grouped.nt, wide, last, sizes),
    'tn up': (grouped.tn, wide, narrow, sizes),
    'tn down': (grouped.tn, narrow, wide, sizes),
  }


def layer_cases(shape, dtype, activation=jax.nn.silu, gated=True):
  """name -> function, arguments: both directions of the fused layer."""
  t, d, n, e, k = SHAPES[shape]
  x, rows = of((t, d), dtype), t * k
  first, last = of((e, d, n), dtype), of((e, n, d), dtype)
  matrices = (first, first if gated else None, last)
  weights = of((t, k), jnp.float32)
  row = of((rows,), jnp.int32)
  plan = Plan(row, of((t, k), jnp.int32), of((e,), jnp.int32))
  pre = of((rows, n), dtype)
  kept = (pre, pre if gated else None)
  forward = functools.partial(layer.forward, activation=activation, keep=True)
  backward = functools.partial(layer.backward, activation=activation)
  return {
    'forward': (forward, x, matrices, weights, plan),
    'backward': (backward, x, matrices, weights, plan, kept, x),
  }


def gradient_case(shape, dtype):
  """The public operation and its gradient, as a model calls it."""
  t, d, n, e, k = SHAPES[shape]
  first, last = of((e, d, n), dtype), of((e, n, d), dtype)

  def loss(x, gate, up, down, weights, ids):
    y = expert_ffn(x, gate, up, down, ids, weights, activation=jax.nn.silu)
    return y.astype(jnp.float32).sum()

  weights, ids = of((t, k), jnp.float32), of((t, k), jnp.int32)
  args = of((t, d), dtype), first, first, last, weights, ids
  return jax.grad(loss, range(5)), *args


def spilling_case():
  """A kernel whose results are twice what its threads have registers for."""
  tiles = {'up': Tiles(128, 128, 64, num_warps=4)}
  forward, *args = layer_cases('7B', jnp.bfloat16)['forward']
  return functools.partial(forward, tiles=tiles), *args


def library_cases():
  """What the libraries' entry for Hopper takes."""
  x, sizes = of((8192, 1536), jnp.bfloat16), of((64,), jnp.int32)
  w = of((64, 1536, 1024), jnp.bfloat16)
  assert library_gpu.mosaic_refuses('nn', x, w, sizes) is None
  return {'nn': (functools.partial(library_gpu.mosaic, 'nn'), x, w, sizes)}


def cases():
  """(family, shape, dtype, name, function, arguments)"""
  for dtype in (jnp.bfloat16, jnp.float32):
    for shape in SHAPES:
      for name, case in layer_cases(shape, dtype).items():
        yield 'layer', shape, dtype, name, *case
    for shape in ('7B', '30B', 'odd'):
      for name, case in grouped_cases(shape, dtype).items():
        yield 'grouped', shape, dtype, name, *case
  for activation in (jax.nn.gelu, jax.nn.mish):
    for gated in (True, False):
      found = layer_cases('7B', jnp.bfloat16, activation, gated)
      for name, case in found.items():
        name = f'{name} {activation.__name__}{"" if gated else " ungated"}'
        yield 'layer', '7B', jnp.bfloat16, name, *case
  for shape in ('7B', '30B'):
    case = gradient_case(shape, jnp.bfloat16)
    yield 'gradient', shape, jnp.bfloat16, 'gradient', *case
  yield 'spilling', '7B', jnp.bfloat16, 'spilling', *spilling_case()
  for name, case in library_cases().items():
    yield 'library', '7B', jnp.bfloat16, name, *case


def sharded_over_4(shape='7B', dtype=jnp.bfloat16):
  """The gradient with tokens sharded over 4 GPUs, lowered."""
  mesh = Mesh(np.array(h100.devices(4)), ('data',))
  split, whole = PartitionSpec('data'), PartitionSpec()
  gradient, *args = gradient_case(shape, dtype)
  specs = split, whole, whole, whole, split, split
  f = jax.shard_map(
    gradient,
    mesh=mesh,
    in_specs=specs,
    out_specs=(split, whole, whole, whole, split),
    check_vma=False,
  )
  args = [
    of(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
    for a, spec in zip(args, specs, strict=True)
  ]
  return jax.jit(f).lower(*args)


def compiled_cases():
  """(family, shape, dtype, name, compiled, kernels)"""
  (device,) = h100.devices()
  for family, shape, dtype, name, f, *args in cases():
    which = family, shape, dtype, name
    yield *which, *h100.compile_for(device, f, *args)
  which = 'sharded', '7B', jnp.bfloat16, 'gradient over 4 GPUs'
  yield *which, *h100.inspect(sharded_over_4())


def main(markdown):
  for family, shape, dtype, name, compiled, kernels in compiled_cases():
    ours = ('grouped_', 'expert_', 'body_mosaic_gpu')
    found = {
      'family': family,
      'shape': SHAPES[shape],
      'dtype': jnp.dtype(dtype).name,
      'case': f'{shape} {jnp.dtype(dtype).name} {name}',
      'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
      'kernels': [k for k in kernels if k['kernel'].startswith(ours)],
    }
    if not markdown:
      print(json.dumps(found), flush=True)
      continue
    for k in found['kernels']:
      row = [found['case'], k['kernel'], k['registers'], k['frame']]
      row += [k['shared'], k.get('wgmma', 0), k.get('mma', 0)]
      print('|', ' | '.join(map(str, row)), '|', flush=True)


if __name__ == '__main__':
  main('--markdown' in sys.argv)
