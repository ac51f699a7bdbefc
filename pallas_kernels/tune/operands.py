"""Operands that candidates are measured on, and the routing of their rows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from pallas_kernels.expert_ffn.shapes import Layer, draw_ids, draw_sizes
from pallas_kernels.grouped_matmul.tile_shapes import Problem
from pallas_kernels.route.plan import Plan, by_sort


def product(p: Problem, dtype: str, seed: int):
  """The two operands of a form."""
  draw = _draw(dtype, seed)
  if p.form == 'tn':
    return draw(p.rows, p.d), draw(p.rows, p.f)
  return draw(p.rows, p.axes[0]), draw(p.groups, p.d, p.f)


def sizes(p: Problem, seed: int, exponent: float) -> np.ndarray:
  """int32 [E]: sizes of groups that the rows are drawn into."""
  layer = Layer(tokens=p.rows, d=1, n=1, experts=p.groups, k=1)
  return draw_sizes(layer, seed, exponent)


def layer(p: Problem, dtype: str, seed: int):
  """x, gated matrices, weights, pre-activations and dy of a layer."""
  draw, k = _draw(dtype, seed), _choices(p)
  tokens = p.rows // k
  first, last = (p.groups, p.d, p.f), (p.groups, p.f, p.d)
  matrices = draw(*first), draw(*first), draw(*last)
  weights = draw(tokens, k).astype(jnp.float32)
  kept = draw(p.rows, p.f), draw(p.rows, p.f)
  return draw(tokens, p.d), matrices, weights, kept, draw(tokens, p.d)


def plan(p: Problem, seed: int, exponent: float) -> Plan:
  """The order of a layer's pairs."""
  k = _choices(p)
  ids = draw_ids(Layer(p.rows // k, 1, 1, p.groups, k), seed, exponent)
  return by_sort(jnp.asarray(ids), experts=p.groups)


def _choices(p: Problem) -> int:
  """Experts of a token; a key of the store does not have it."""
  return next(k for k in (8, 4, 2, 1) if p.rows % k == 0 and k <= p.groups)


def _draw(dtype, seed):
  rng = np.random.default_rng(seed)
  return lambda *shape: jnp.asarray(
    rng.standard_normal(shape, np.float32), dtype
  )
