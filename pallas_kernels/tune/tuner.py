"""Measures the candidates of a kernel and makes an entry for the store."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.expert_ffn.shapes import Layer, draw_sizes
from pallas_kernels.grouped_matmul.tile_shapes import Problem
from pallas_kernels.tune import measure, store
from pallas_kernels.tune.spaces import Space

# Exponents of the distributions of group sizes that are measured: balanced
# but for chance, and Zipf's law.
EXPONENTS = (0.0, 1.0)


def tune(
  space: Space,
  form: str,
  shape: tuple[int, int, int, int],
  dtype: str,
  *,
  rounds: int,
  seed: int = 0,
  clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, dict], dict[str, float]]:
  """Measures every candidate of one form.

  Args:
    space: the kernel.
    form: 'nn', 'nt' or 'tn'.
    shape: rows, groups, D, F.
    dtype: of the operands, by name.
    rounds: timed calls of each candidate on each distribution.
    seed: of the operands and group sizes.
    clock: seconds.

  Returns:
    What to `store.put`, and seconds by candidate.
  """
  rows, groups, d, f = shape
  problem = Problem(form, rows, groups, d, f, jnp.dtype(dtype).itemsize)
  a, b = _operands(problem, dtype, seed)
  cases = [
    jnp.asarray(sizes(rows, groups, seed, exponent)) for exponent in EXPONENTS
  ]
  choices = {json.dumps(c): c for c in space.candidates(problem)}

  def runner(choice):
    run = jax.jit(lambda a, b, sizes_E: space.call(form, a, b, sizes_E, choice))
    return lambda case: jax.block_until_ready(run(a, b, cases[case]))

  calls = {name: runner(choice) for name, choice in choices.items()}
  times = measure.seconds(calls, len(cases), rounds=rounds, clock=clock)
  best = measure.fastest(times)
  entry = {
    'choice': choices[best],
    'seconds': times,
    'jax': jax.__version__,
    'date': datetime.date.today().isoformat(),
    'measured': f'{rounds} rounds, seed {seed}, exponents {EXPONENTS}',
  }
  key = store.Key(space.chip(), rows, groups, d, f, dtype)
  return {key.text(space.op, form): entry}, times


def sizes(rows: int, groups: int, seed: int, exponent: float) -> np.ndarray:
  """int32 [E]: sizes of groups that `rows` rows are drawn into."""
  layer = Layer(tokens=rows, d=1, n=1, experts=groups, k=1)
  return draw_sizes(layer, seed, exponent)


def _operands(p: Problem, dtype, seed):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape, np.float32), dtype)

  if p.form == 'tn':
    return draw(p.rows, p.d), draw(p.rows, p.f)
  return draw(p.rows, p.axes[0]), draw(p.groups, p.d, p.f)
