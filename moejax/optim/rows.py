"""Steps of an optimiser on the rows of tables that have a gradient.

The whole chain runs on arrays of these rows in place of the tables and of what
mirrors them in its state, and the rows are then put back. With donated buffers
XLA writes them in place, so that a step costs what is read, not what there is.
A direction must be one number's own affair, as those of Adam and Adagrad are.

Equal to a step on whole tables where a row without a gradient stays as it is:
plain descent or Adagrad, without decay.
Differs: for Adam (1412.6980) moments decay, and rows move and lose weight, in
steps that read them only, while the corrections of the bias count all steps, as
those of torch's SparseAdam do. So weight decay falls on rows that are read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moejax.optim import parameters

TABLE = 'slots'


class Rows(NamedTuple):
  """The gradient of a table, whose layers' rows count on.

  Attributes:
    slots_R: int32, each at most once; the number of all rows means "none".
    rows_RD: 0 where there is none.
  """

  slots_R: jax.Array
  rows_RD: jax.Array


def numbers(grads: Any) -> Any:
  """Gradients with arrays of rows in place of `Rows`.

  Their norm is that of the whole gradient, as no slot comes twice.
  """
  return jax.tree.map(
    lambda node: node.rows_RD if isinstance(node, Rows) else node,
    grads,
    is_leaf=lambda node: isinstance(node, Rows),
  )


def check(parameter: parameters.Parameter, label: str) -> None:
  """Raises: ValueError unless rows of it can be updated alone."""
  if parameter.names[-2:-1] != (TABLE,):
    raise ValueError(
      f'{parameter.path} with axes {parameter.names} is set to rows=True but '
      f'is no table of a memory, whose axes end in {(TABLE, "value")}; remove '
      'the setting.'
    )
  if label == 'muon':
    raise ValueError(
      f'{parameter.path} is set to rows=True, but Muon needs all of its rows; '
      'set matrix=False or remove rows.'
    )


@dataclasses.dataclass
class View:
  """What an optimiser sees: rows in place of the tables that `grads` cuts."""

  params: Any
  grads_of: Any

  def __post_init__(self):
    leaves = jax.tree_util.tree_leaves_with_path(
      self.grads_of, is_leaf=lambda node: isinstance(node, Rows)
    )
    self.slots = {
      parameters.slashed(path): leaf.slots_R
      for path, leaf in leaves
      if isinstance(leaf, Rows)
    }
    found = parameters.collect(self.params)
    self.tables = {path: found[path] for path in self.slots}

  @property
  def grads(self) -> Any:
    """The gradients, arrays of rows in place of `Rows`."""
    return numbers(self.grads_of)

  def of(self, tree: Any) -> Any:
    """Parameters or state, with rows in place of tables."""

    def cut(leaf, slots_R):
      return _flat(leaf).at[slots_R].get(mode='fill', fill_value=0)

    return self._mapped(cut, tree)

  def put(self, tree: Any, few: Any) -> Any:
    """The tree with the rows of `few`, which `of` had cut out of it."""

    def put(leaf, slots_R, rows_RD):
      flat = _flat(leaf).at[slots_R].set(rows_RD, mode='drop')
      return flat.reshape(leaf.shape)

    return self._mapped(put, tree, few, whole=lambda old, new: new)

  def _mapped(self, table, tree, *others, whole=lambda leaf: leaf):
    def one(path, leaf, *more):
      found = parameters.mirrored(path, leaf, self.tables)
      if found is None:
        return whole(leaf, *more)
      return table(leaf, self.slots[found.path], *more)

    return jax.tree_util.tree_map_with_path(one, tree, *others)


def _flat(table):
  """[.., S, D] to [R, D]."""
  return jnp.reshape(table, (-1, table.shape[-1]))
