"""A training state with its experts in another order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moejax.optim.parameters import slashed

# Logical axes that count experts, of parameters and of what follows them.
_AXES = ('expert', 'router')


def permute(tree: Any, names: Any, orders: Mapping[str, np.ndarray]) -> Any:
  """`tree` with each mixture's experts in an order: new[i] = old[order[i]].

  Matrices, their optimiser moments, router columns, selection biases and counts
  move together, so that nothing changes but the numbers of the experts. A
  router that is limited to groups of neighbours must get an order that keeps
  its groups.

  Args:
    tree: a TrainState, or parameters.
    names: a like tree of tuples of logical axis names; an axis of `balance` may
      have none.
    orders: for the path of a mixture in the parameters, such as
      'layers/blocks_1/ffn', [E], or [L, E] where its layers are scanned.

  Raises:
    ValueError: an order is no permutation, or fits no mixture.
  """
  for path, order in orders.items():
    wanted = np.arange(np.shape(order)[-1])
    if not (np.sort(order, axis=-1) == wanted).all():
      raise ValueError(f'the order of {path!r} is no permutation: {order}.')
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  axes = treedef.flatten_up_to(names)
  moved, used = [], set()
  for (keys, leaf), own in zip(leaves, axes, strict=True):
    path = slashed(keys)
    for mixture, order in orders.items():
      axis = expert_axis(path, mixture, own)
      if axis is not None:
        used.add(mixture)
        leaf = _take(leaf, np.asarray(order), axis)
    moved.append(leaf)
  for mixture in orders:
    if mixture not in used:
      raise ValueError(
        f'no mixture lies at {mixture!r}; a path is that of the parameters, '
        "such as 'layers/blocks_0/ffn'."
      )
  return jax.tree.unflatten(treedef, moved)


def inverse(order: np.ndarray) -> np.ndarray:
  """The order that undoes one, along the last axis."""
  return np.argsort(order, axis=-1)


def expert_axis(path: str, mixture: str, names: tuple) -> int | None:
  """Which axis of a leaf counts the experts of a mixture, if any."""
  path = f'/{path}/'
  if f'/{mixture}/' not in path:
    return None
  for i, name in enumerate(names):
    if name in _AXES:
      return i
  is_balance = path.startswith('/balance/') and f'/{mixture}/router/' in path
  return len(names) - 1 if is_balance else None


def _take(leaf, order, axis):
  if order.ndim == 1:
    return jnp.take(leaf, order, axis=axis)
  shape = [1] * leaf.ndim
  shape[0], shape[axis] = order.shape
  return jnp.take_along_axis(leaf, order.reshape(shape), axis=axis)
