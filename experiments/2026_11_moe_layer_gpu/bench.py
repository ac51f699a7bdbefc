"""Forward and backward of one MoE layer on a GPU, in TFLOP/s.

    python experiments/2026_11_moe_layer_gpu/bench.py \
      --torch-python=/path/to/a/python/that/has/torch

First every side's result is compared with the definition in f32; no speed is
measured of one that differs. Prints a markdown table, with what it ran on.
`--smoke` runs a toy size on any host, with the kernels interpreted.
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from pallas_kernels.expert_ffn import pallas_gpu  # noqa: E402
from pallas_kernels.expert_ffn.api import expert_ffn  # noqa: E402
from pallas_kernels.grouped_matmul.api import grouped_matmul  # noqa: E402
from pallas_kernels.route.api import permutation  # noqa: E402

# name -> (T, d, n, E, K), published forward and backward TFLOP/s of SonicMoE
# on an H100, read off a figure (+-5; sonic-moe, assets/tput.png).
SHAPES = {
  '1.4B': ((40960, 768, 256, 128, 8), (338, 366)),
  '7B': ((24576, 1536, 256, 128, 8), (364, 404)),
  '7B half as many': ((24576, 1536, 512, 64, 4), (434, 438)),
  '7B coarse': ((24576, 1536, 1024, 32, 2), (466, 466)),
  '30B': ((32768, 4096, 256, 256, 16), (426, 457)),
  '30B coarse': ((32768, 4096, 1024, 64, 4), (549, 551)),
  '120B': ((32768, 4096, 512, 256, 16), (515, 523)),
}
TOY = {'toy': ((24, 8, 12, 4, 2), None)}
# What the definition is compared at: it runs every expert on every token.
CHECK, TOY_CHECK = (2048, 512, 256, 32, 4), (24, 8, 12, 4, 2)
TOLERANCE = {'float32': 1e-5, 'bfloat16': 2e-2}
SAMPLES, CALLS = 5, 10


def inputs(shape, dtype, skew=0.0, seed=0):
  """x, the three matrices, ids, weights and dy. Experts of a token differ.

  With `skew`, expert e is chosen as if it were (e + 1) ** -skew as likely.
  """
  t, d, n, e, k = shape
  rng = np.random.default_rng(seed)
  keys = jax.random.split(jax.random.key(seed), 5)

  def draw(key, size, fan_in=1):
    return jax.random.normal(key, size, dtype) * jnp.asarray(
      fan_in**-0.5, dtype
    )

  noise = rng.gumbel(size=(t, e)) - skew * np.log(np.arange(1, e + 1))
  ids = np.argpartition(-noise, k - 1, axis=1)[:, :k]
  weights = rng.uniform(size=(t, k))
  weights /= weights.sum(1, keepdims=True)
  matrices = (
    draw(keys[0], (e, d, n), d),
    draw(keys[1], (e, d, n), d),
    draw(keys[2], (e, n, d), n),
  )
  x, dy = draw(keys[3], (t, d)), draw(keys[4], (t, d))
  ids = jnp.asarray(ids, jnp.int32)
  return x, matrices, ids, jnp.asarray(weights, jnp.float32), dy


class Fused:
  """The layer of this repository, in its own kernels."""

  def __init__(self, interpret):
    static = dict(activation=jax.nn.silu, interpret=interpret)
    self._forward = functools.partial(pallas_gpu.forward, keep=True, **static)
    self._backward = functools.partial(pallas_gpu.backward, **static)

  def forward(self, x, matrices, ids, weights):
    args = (x, matrices, weights, permutation(ids, matrices[0].shape[0]))
    y, kept = self._forward(*args)
    return y, (*args, kept)

  def backward(self, saved, dy):
    return self._backward(*saved, dy)


class Products:
  """Sorted rows, three grouped products by name, and automatic gradients."""

  def __init__(self, implementation):
    self.implementation = implementation

  def layer(self, x, matrices, weights, p):
    gate, up, down = matrices
    product = functools.partial(
      grouped_matmul, sizes_E=p.sizes_E, implementation=self.implementation
    )
    rows = x[p.token_R]
    a = jax.nn.silu(product(rows, gate)) * product(rows, up)
    y = product(a, down)[p.place_NK]
    return jnp.einsum('nkd,nk->nd', y, weights.astype(y.dtype))

  def forward(self, x, matrices, ids, weights):
    p = permutation(ids, matrices[0].shape[0])
    layer = functools.partial(self.layer, p=p)
    return jax.vjp(lambda *a: layer(*a), x, matrices, weights)

  def backward(self, saved, dy):
    return saved(dy)


def sides(smoke):
  if smoke:
    return {'fused': Fused(interpret=True), 'products': Products(None)}
  return {
    'fused': Fused(interpret=False),
    'products (triton)': Products('triton'),
    'products (jax mosaic_gpu)': Products('mosaic_gpu'),
    'products (tokamax)': Products('tokamax'),
  }


@functools.cache
def jitted(side):
  return jax.jit(side.forward), jax.jit(side.backward)


@jax.jit
def definition(x, matrices, ids, weights, dy):
  """y and the gradients of x, the matrices and the weights."""

  def f(x, matrices, weights):
    return expert_ffn(
      x,
      *matrices,
      ids,
      weights,
      activation=jax.nn.silu,
      implementation='reference',
    )

  y, pull = jax.vjp(f, x, matrices, weights)
  return y, *pull(dy)


def difference(side, shape, dtype):
  """The largest error of y and the gradients, relative to each one's scale."""
  x, matrices, ids, weights, dy = inputs(shape, dtype)
  forward, backward = jitted(side)
  y, saved = forward(x, matrices, ids, weights)
  got = y, *backward(saved, dy)
  with jax.default_matmul_precision('highest'):
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), (x, matrices, dy))
    want = definition(wide[0], wide[1], ids, weights, wide[2])
  errors = []
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = np.asarray(a, np.float32), np.asarray(b)
    if not np.isfinite(a).all():
      return float('inf')
    errors.append(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
  return float(max(errors))


def seconds(f, *args, calls):
  """The median over samples of the mean over calls, after two warm-ups."""
  for _ in range(2):
    jax.block_until_ready(f(*args))
  samples = []
  for _ in range(SAMPLES):
    start = time.perf_counter()
    for _ in range(calls):
      out = f(*args)
    jax.block_until_ready(out)
    samples.append((time.perf_counter() - start) / calls)
  return statistics.median(samples)


def rates(side, shape, dtype, *, calls, skew=0.0):
  """Forward and backward TFLOP/s: 6TKnd and 12TKnd."""
  t, d, n, _, k = shape
  x, matrices, ids, weights, dy = inputs(shape, dtype, skew)
  forward, backward = jitted(side)
  _, saved = forward(x, matrices, ids, weights)
  work = 6 * t * k * n * d / 1e12
  return (
    work / seconds(forward, x, matrices, ids, weights, calls=calls),
    2 * work / seconds(backward, saved, dy, calls=calls),
  )


def torch_rates(python, shapes):
  """side -> name -> rates in torch, or why there are none."""
  asked = json.dumps({'shapes': shapes, 'check': CHECK})
  done = subprocess.run(
    [python, HERE / 'torch_side.py', asked],
    capture_output=True,
    text=True,
    timeout=240,
  )
  if done.returncode:
    reason = (done.stderr.strip().splitlines() or ['failed'])[-1]
    return {'torch': {name: reason for name in shapes}}
  return json.loads(done.stdout.splitlines()[-1])


def row(name, shape, side, result, published):
  figures = ', '.join(map(str, shape))
  if isinstance(result, str):
    measured = f'not run: {result} | '
  else:
    measured = ' | '.join(f'{rate:.3g}' for rate in result)
  published = '' if published is None else ' / '.join(map(str, published))
  return f'| {name} | {figures} | {side} | {measured} | {published} |'


def measure(found, shapes, stop, calls):
  """Prints the rows of all shapes; a side that fails says why."""
  for name, (shape, published) in shapes.items():
    for side_name, side in found.items():
      result = 'no time left'
      if time.perf_counter() < stop:
        try:
          result = rates(side, shape, jnp.bfloat16, calls=calls)
        except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
          result = str(error).splitlines()[0][:120].replace('|', '/')
      print(row(name, shape, side_name, result, published), flush=True)
  name = '7B' if '7B' in shapes else next(iter(shapes))
  shape, _ = shapes[name]
  if time.perf_counter() < stop:
    skewed = rates(found['fused'], shape, jnp.bfloat16, calls=calls, skew=1.0)
    print(row(f'{name}, Zipf', shape, 'fused', skewed, None), flush=True)


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--smoke', action='store_true')
  parser.add_argument('--torch-python', help='a Python that has torch')
  parser.add_argument('--budget-s', type=float, default=400)
  args = parser.parse_args(argv)
  if not args.smoke and jax.default_backend() != 'gpu':
    parser.error(f'{jax.devices()[0]} is no GPU; use --smoke for a toy size.')
  stop = time.perf_counter() + args.budget_s
  found = sides(args.smoke)
  shapes, check = (TOY, TOY_CHECK) if args.smoke else (SHAPES, CHECK)

  print(f'commit {commit()}, jax {jax.__version__}, {jax.devices()[0]}\n')
  for side_name in list(found):
    both = side_name == 'fused' and not args.smoke
    for dtype in ('bfloat16', 'float32') if both else ('bfloat16',):
      try:
        error = difference(found[side_name], check, jnp.dtype(dtype))
      except (NotImplementedError, jax.errors.JaxRuntimeError) as reason:
        print(f'{side_name}, {dtype}: {str(reason).splitlines()[0]}')
        continue
      print(f'{side_name}, {dtype}: largest relative error {error:.1e}')
      if not error < TOLERANCE[dtype]:
        if side_name == 'fused':
          print('wrong: nothing is measured.')
          return 1
        print(f'wrong: {side_name} is not measured.')
        del found[side_name]

  print('\n| shape | T, d, n, E, K | side | forward | backward | SonicMoE |')
  print('|---|---|---|---|---|---|')
  measure(found, shapes, stop, 1 if args.smoke else CALLS)
  if args.torch_python:
    plain = {name: shape for name, (shape, _) in shapes.items()}
    torch_found = torch_rates(args.torch_python, plain)
    for side_name, found in torch_found.items():
      for name, (shape, published) in shapes.items():
        print(row(name, shape, side_name, found[name], published))
  return 0


def commit():
  done = subprocess.run(
    ['git', 'describe', '--always', '--dirty'],
    capture_output=True,
    text=True,
    cwd=HERE,
  )
  return done.stdout.strip() or 'unknown'


if __name__ == '__main__':
  sys.exit(main())
