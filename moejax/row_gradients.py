"""Gradients of a model of which some tables have theirs by rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import sharding
from moejax.memory import taps
from moejax.optim import Rows
from moejax.optim.parameters import slashed
from moejax.state import context
from pallas_kernels.table_lookup.api import touched_rows


def gradient(
  model: nn.Module, compute: Callable, tables: Sequence[str]
) -> Callable:
  """Makes `(params, balance, batch) -> ((scalar, aux), grads)`.

  Args:
    model: the model.
    compute: `(params, balance, batch, zeros) -> (scalar, (aux, reads))`, where
      `zeros` are taps, or None.
    tables: paths of the parameters whose gradients are to be `taps.Factors`.
  """

  def run(params, balance, batch):
    if tables:
      _check_mesh(tables)
      _check_stages(model, tables)
    whole, cut = _cut(params, tables)
    zeros = _zeros(model, params, balance, batch, tables)

    def f(whole, zeros):
      return compute(_joined(whole, cut), balance, batch, zeros)

    wanted = jax.value_and_grad(f, argnums=(0, 1), has_aux=True)
    (value, (aux, reads)), (grads, dtaps) = wanted(whole, zeros)
    slots = {path: table.shape[-2] for path, table in cut.items()}
    found = taps.factors(dtaps, reads, slots)
    return (value, aux), _joined(grads, found)

  return run


def split(grads: Any) -> tuple[Any, Any]:
  """Gradients with None for tables, and the factors with None for others."""
  return tuple(
    jax.tree.map(
      lambda g, want=want: g if _is_factors(g) == want else None,
      grads,
      is_leaf=_is_factors,
    )
    for want in (False, True)
  )


def scaled(factors: Any, by: jax.Array) -> Any:
  """Gradients of `by` times the loss."""
  return jax.tree.map(
    lambda f: f.replace(weights_NKC=by * f.weights_NKC),
    factors,
    is_leaf=_is_factors,
  )


def concatenated(factors: Any) -> Any:
  """One gradient of those of micro-batches, which are stacked."""
  return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), factors)


def by_rows(grads: Any, factors: Any, params: Any) -> Any:
  """What `split` gave, joined, with `optim.Rows` in place of factors."""

  def one(grad, factors, table):
    if factors is None:
      return grad
    count = table.size // table.shape[-1]
    slots_R, rows_RD = touched_rows(
      factors.ids_NK, factors.weights_NKC, factors.vectors_ND, count
    )
    return Rows(slots_R, jnp.where((slots_R < count)[:, None], rows_RD, 0))

  return jax.tree.map(
    one,
    grads,
    factors,
    params,
    is_leaf=lambda node: node is None or _is_factors(node),
  )


def _is_factors(node):
  return isinstance(node, taps.Factors)


def _zeros(model, params, balance, batch, tables):
  """Taps on the tables: zeros, of the shapes that a pass of the model tells."""
  if not tables:
    return {}

  def made():
    variables = {'params': params, 'balance': balance}
    ctx = context(batch, train=True)
    written = model.apply(variables, ctx, mutable=[taps.TAPS])[1]
    return written.get(taps.TAPS, {})

  shapes = taps.only(jax.eval_shape(made), tables)
  _check_read(shapes, tables)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _cut(params, tables):
  """The tree with None at the tables, and {path: table}."""
  cut = {}

  def one(path, leaf):
    if slashed(path) not in tables:
      return leaf
    cut[slashed(path)] = leaf
    return None

  return jax.tree_util.tree_map_with_path(one, params), cut


def _joined(tree, cut):
  """The tree with {path: leaf} where it has None."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: cut.get(slashed(path), leaf),
    tree,
    is_leaf=lambda node: node is None,
  )


def _check_read(zeros, tables):
  missing = set(tables) - taps.tables_of(zeros)
  for path in sorted(missing):
    raise ValueError(
      f'{path} is set to rows=True, but no layer reads its rows; remove the '
      'setting, or read the table by memory.tables.rows_of.'
    )


def _check_stages(model, tables):
  if getattr(model, 'pipeline', None) is not None:
    raise ValueError(
      f'{tables[0]} is set to rows=True, but stages of config.model.pipeline '
      'read it in parts of a batch; remove either.'
    )


def _check_mesh(tables):
  for name in ('slots', 'value'):
    axes = sharding.axes_of(name)
    if axes:
      raise ValueError(
        f'{tables[0]} is set to rows=True, but config.rules cut {name!r} over '
        f'the mesh axes {", ".join(axes)}; keep the table whole, or remove '
        'rows=True.'
      )
