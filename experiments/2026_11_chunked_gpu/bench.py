"""Chunked recurrences on a GPU beside fla's Triton kernels, in TFLOP/s.

    python experiments/2026_11_chunked_gpu/bench.py

First each operation is compared with the recurrence, token by token in f32; no
speed is measured of one that differs. Prints a markdown table, with what it ran
on. fla is timed if it and torch are installed. `--smoke` runs a toy size on any
host, with the kernels interpreted.
"""

import argparse
import functools
import importlib.util
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from pallas_kernels.chunked.shapes import PUBLISHED, Shape  # noqa: E402
from pallas_kernels.chunked_delta import pallas_gpu as delta_gpu  # noqa: E402
from pallas_kernels.chunked_delta import reference as delta  # noqa: E402
from pallas_kernels.chunked_linear import pallas_gpu as linear_gpu  # noqa: E402
from pallas_kernels.chunked_linear import reference as linear  # noqa: E402

# name -> decay, delta.
OPERATIONS = {
  'kda': ('channel', True),
  'gated_delta': ('head', True),
  'gla': ('channel', False),
  'simple_gla': ('head', False),
}
CHECK, TOY = Shape(2, 500, 2, 128, 2, 128), Shape(1, 70, 1, 16, 1, 16)
TOLERANCE = {'float32': 1e-5, 'bfloat16': 5e-3}
SAMPLES, CALLS = 5, 10


def flops(shape, with_delta, chunk=64):
  """Of one forward pass: what the definition in chunks needs, no more.

  A backward pass counts as twice that.
  """
  K, V = shape.K, shape.V
  count = 4 * K * V + 2 * chunk * (K + V)
  if with_delta:
    count += 2 * K * V + 2 * chunk * (K + V) + chunk * chunk
  return shape.tokens * count


def inputs(shape, decay, with_delta, dtype, seed=0):
  """Arguments of the operation, and the cotangents of its results."""
  rng = np.random.default_rng(seed)
  B, T, G = shape.B, shape.T, shape.G

  def draw(*size):
    return rng.standard_normal(size, np.float32)

  def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  q, k = (unit(draw(B, T, shape.H, shape.K)) for _ in range(2))
  v, d_y = draw(B, T, G, shape.V), draw(B, T, G, shape.V)
  gates = (B, T, G, shape.K) if decay == 'channel' else (B, T, G)
  log_decay = -np.log1p(np.exp(-draw(*gates) - 2))
  beta = [1 / (1 + np.exp(-draw(B, T, G)))] if with_delta else []
  state = np.zeros((B, G, shape.K, shape.V), np.float32)
  q, k, v, d_y = (jnp.asarray(x, dtype) for x in (q, k, v, d_y))
  args = q, k, v, *map(jnp.asarray, (log_decay, *beta, state))
  return args, (d_y, jnp.zeros_like(args[-1]))


@functools.cache
def ours(name, scale, interpret):
  """(results only, results and gradients), compiled."""
  part = delta_gpu if OPERATIONS[name][1] else linear_gpu
  static = dict(scale=scale, chunk=None, interpret=interpret)

  def forward(args):
    return part.forward(*args, keep=False, **static)[0]

  def both(args, d_outs):
    outs, kept = part.forward(*args, keep=True, **static)
    return outs, part.backward(args, kept, d_outs, **static)

  options = {'xla_allow_excess_precision': False}
  return (
    jax.jit(forward, compiler_options=options),
    jax.jit(both, compiler_options=options),
  )


def difference(name, shape, dtype, interpret):
  """The largest relative error of results and gradients."""
  args, d_outs = inputs(shape, *OPERATIONS[name], dtype)
  scale = shape.K**-0.5
  definition = (
    delta.chunked_delta if OPERATIONS[name][1] else linear.chunked_linear
  )

  @jax.jit
  def defined(args, d_outs):
    outs, pull = jax.vjp(lambda *a: definition(*a, scale=scale), *args)
    return outs, pull(d_outs)

  wide = jax.tree.map(lambda a: a.astype(jnp.float32), (args, d_outs))
  with jax.default_matmul_precision('highest'):
    want = defined(*wide)
  got = ours(name, scale, interpret)[1](args, d_outs)
  errors = [
    np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    / max(np.linalg.norm(np.asarray(b, np.float64)), 1e-30)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
  ]
  # Not a number is the largest of all.
  return float(np.max(errors))


def seconds(f, *, wait, calls):
  """The median over samples of the mean over calls, after two warm-ups."""
  for _ in range(2):
    wait(f())
  samples = []
  for _ in range(SAMPLES):
    start = time.perf_counter()
    for _ in range(calls):
      out = f()
    wait(out)
    samples.append((time.perf_counter() - start) / calls)
  return statistics.median(samples)


def rates(name, shape, dtype, *, interpret, calls):
  """Seconds of forward, and of forward and backward."""
  args, d_outs = inputs(shape, *OPERATIONS[name], dtype)
  forward, both = ours(name, shape.K**-0.5, interpret)
  time_of = functools.partial(seconds, wait=jax.block_until_ready, calls=calls)
  return time_of(lambda: forward(args)), time_of(lambda: both(args, d_outs))


def row(name, label, shape, side, result):
  figures = f'{shape.B}, {shape.T}, {shape.G}, {shape.K}'
  if isinstance(result, str):
    return f'| {name} | {label}: {figures} | {side} | not run: {result} | |'
  work = flops(shape, OPERATIONS[name][1]) / 1e12
  cells = [
    f'{1e3 * each:.3f} ms, {count * work / each:.3g}'
    for each, count in zip(result, (1, 3), strict=True)
  ]
  return f'| {name} | {label}: {figures} | {side} | {" | ".join(cells)} |'


def fla_rates(name, shape):
  """The same of fla, or why there are none."""
  if not all(map(importlib.util.find_spec, ('torch', 'fla', 'triton'))):
    return 'fla is not installed'
  import fla_side

  return fla_side.rates(name, shape, seconds, CALLS)


def attempt(f, *args, **static):
  """What `f` gives, or why it failed in a line."""
  try:
    return f(*args, **static)
  except (NotImplementedError, RuntimeError, ImportError) as error:
    return (str(error).splitlines() or ['failed'])[0][:120].replace('|', '/')


def gate(smoke):
  """Whether all operations are right."""
  shape = TOY if smoke else CHECK
  for name in OPERATIONS:
    for dtype, most in TOLERANCE.items():
      error = difference(name, shape, jnp.dtype(dtype), smoke)
      print(f'{name}, {dtype}: largest relative error {error:.1e}')
      if not error < most:
        print('wrong: nothing is measured.')
        return False
  return True


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--smoke', action='store_true')
  parser.add_argument('--budget-s', type=float, default=400)
  args = parser.parse_args(argv)
  if not args.smoke and jax.default_backend() != 'gpu':
    parser.error(f'{jax.devices()[0]} is no GPU; use --smoke for a toy size.')
  stop = time.perf_counter() + args.budget_s
  print(f'commit {commit()}, jax {jax.__version__}, {jax.devices()[0]}\n')
  if not gate(args.smoke):
    return 1
  static = dict(interpret=args.smoke, calls=1 if args.smoke else CALLS)
  print('\n| operation | B, T, H, D | side | forward | and backward |')
  print('|---|---|---|---|---|')
  for label, shape in ({'toy': TOY} if args.smoke else PUBLISHED).items():
    for name in OPERATIONS:
      found = {'ours': 'no time left', 'fla': 'no time left'}
      if time.perf_counter() < stop:
        found['ours'] = attempt(rates, name, shape, jnp.bfloat16, **static)
        found['fla'] = attempt(fla_rates, name, shape)
      for side, result in found.items():
        print(row(name, label, shape, side, result), flush=True)
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
