"""Gradients of tables as factors, without an array of a table's size.

What a table gives a token is linear in its rows. So its gradient is a sum, over
the rows that were read, of a weight times a vector, of which one is known in
the forward pass and the other is the gradient of the result. A tap is a zero
that is added to the result: it has that gradient. Two collections:

  taps   the zeros, made in a pass in which the collection may be written
  reads  ids and the factor that the forward pass knows, where there are taps

Each is under the path of the reader, by the name of whose table is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct as struct
import jax
import jax.numpy as jnp

TAPS, READS = 'taps', 'reads'
OWN, SHARED, ROWS = 'rows', 'shared_', 'rows'


@struct.dataclass
class Factors:
  """The gradient of a table, whose layers' rows count on.

  Attributes:
    ids_NK: int32.
    weights_NKC: f32; number d of a row has weight d % C.
    vectors_ND: f32.
  """

  ids_NK: jax.Array
  weights_NKC: jax.Array
  vectors_ND: jax.Array


def tapped(
  reader: nn.Module, y: jax.Array, *, ids: jax.Array, **factor: jax.Array
) -> jax.Array:
  """y, with the tap of its reader if there is one.

  Raises:
    ValueError: if the reader has been read before in this call.
  """
  if reader.is_initializing():
    return y
  if reader.is_mutable_collection(TAPS):
    if reader.has_variable(TAPS, reader.tap):
      raise ValueError(
        f'a layer reads the table {"/".join(reader.path)} twice, but a '
        'gradient by rows keeps one reading; give it two windows.'
      )
    reader.put_variable(TAPS, reader.tap, jnp.zeros(y.shape, y.dtype))
  elif reader.has_variable(TAPS, reader.tap):
    reader.put_variable(READS, reader.tap, dict(ids=ids, **factor))
    y += reader.get_variable(TAPS, reader.tap)
  return y


def only(tree: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
  """A tree of taps or reads, without those of tables not among `paths`."""
  return _unflat(
    {k: v for k, v in _readings(tree).items() if table_of(k) in paths}
  )


def tables_of(tree: Mapping[str, Any]) -> set[str]:
  """Paths of the parameters that a tree of taps or reads is about."""
  return {table_of(key) for key in _readings(tree)}


def table_of(key: tuple[str, ...]) -> str:
  """The path of the parameter that is read, of the path of a tap."""
  *path, name = key
  home = path if name == OWN else [name]
  return '/'.join([*home, ROWS])


def factors(
  taps: Mapping[str, Any], reads: Mapping[str, Any], slots: Mapping[str, int]
) -> dict[str, Factors]:
  """The gradient of each table, of all its readings together.

  Args:
    taps: gradients of the taps.
    reads: what the forward pass knew.
    slots: rows of a layer of each table, by the path of its parameter.
  """
  reads, found = _readings(reads), {}
  for key, tap in _readings(taps).items():
    path = table_of(key)
    own = slots[path] if key[-1] == OWN else 0
    found.setdefault(path, []).append(_one(own, tap, **reads[key]))
  return {path: _joined(parts) for path, parts in found.items()}


def _one(own, tap, *, ids, weights=None, vectors=None):
  """Factors of one reading, whose arrays may have an axis of layers in front.

  `own` is the rows of a layer if each has its own, else 0.
  """
  if weights is None:
    weights = tap
  else:
    vectors = tap
  if weights.ndim == ids.ndim:
    weights = weights[..., None]
  if ids.ndim == 3:
    ids += own * jnp.arange(len(ids), dtype=jnp.int32)[:, None, None]
    ids, weights, vectors = (
      a.reshape(-1, *a.shape[2:]) for a in (ids, weights, vectors)
    )
  return Factors(ids, weights.astype(jnp.float32), vectors.astype(jnp.float32))


def _joined(parts):
  """One of all: weight 0 where a reading has fewer rows of a token."""
  most = max(p.ids_NK.shape[1] for p in parts)
  kinds = math.lcm(*(p.weights_NKC.shape[2] for p in parts))
  wide = []
  for p in parts:
    after = most - p.ids_NK.shape[1]
    # The last row is named once more, with weight 0.
    ids = jnp.pad(p.ids_NK, ((0, 0), (0, after)), mode='edge')
    weights = jnp.pad(p.weights_NKC, ((0, 0), (0, after), (0, 0)))
    weights = jnp.tile(weights, kinds // weights.shape[2])
    wide.append(Factors(ids, weights, p.vectors_ND))
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *wide)


def _readings(tree):
  """{path: array or dict of arrays}, of every name that `tapped` puts."""
  found = {}

  def walk(node, path):
    for name, child in node.items():
      key = (*path, name)
      leaf = not isinstance(child, Mapping) or 'ids' in child
      if leaf:
        found[key] = child
      else:
        walk(child, key)

  walk(tree, ())
  return found


def _unflat(found):
  tree = {}
  for path, leaf in found.items():
    node = tree
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = leaf
  return tree
