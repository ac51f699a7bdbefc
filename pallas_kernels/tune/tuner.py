"""Measures the candidates of a kernel and makes an entry for the store."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

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
    form: one of its forms.
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
  args = space.operands(problem, dtype, seed)
  cases = [
    jax.tree.map(jnp.asarray, space.case(problem, seed, exponent))
    for exponent in EXPONENTS
  ]
  choices = {json.dumps(c): c for c in space.candidates(problem)}

  def runner(choice):
    run = jax.jit(lambda *args: space.call(form, *args, choice))
    return lambda case: jax.block_until_ready(run(*args, cases[case]))

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
