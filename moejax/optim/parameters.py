"""What an optimiser may know of a parameter: path, shape, logical axes.

A parameter's axes fall into leading batch axes (`layers` of a scan, `expert`
or `memory` of a stack) and *sides*. A weight with two sides is a matrix, or a
batch of them; `heads` next to `kv` is one side, because together they are one
output.
"""

import dataclasses
import math

import jax

BATCH_AXES = ('layers', 'expert', 'memory')
TABLE_AXES = ('vocab', 'slots')
VECTOR_LEAVES = ('bias', 'scale')


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One leaf: its slash-joined path, shape and logical axis names."""

  path: str
  shape: tuple[int, ...]
  names: tuple[str | None, ...]

  @property
  def sides(self):
    """Tuple of tuples of axis indices: what is left without batch axes."""
    axes = list(range(len(self.names)))
    while axes and self._is_batch(axes[0]):
      axes.pop(0)
    sides, i = [], 0
    while i < len(axes):
      width = 2 if self._one_side(axes[i : i + 2]) else 1
      sides.append(tuple(axes[i : i + width]))
      i += width
    return tuple(sides)

  @property
  def is_vector(self):
    """True for norm scales, biases and anything with fewer than two sides."""
    return self.path.split('/')[-1] in VECTOR_LEAVES or len(self.sides) < 2

  @property
  def is_table(self):
    """True where rows are looked up: embeddings, heads, memory values."""
    return any(name in TABLE_AXES for name in self.names)

  @property
  def is_matrix(self):
    """True for a matrix, or a batch of them, that is not a table."""
    return not self.is_vector and not self.is_table and len(self.sides) == 2

  @property
  def fans(self):
    """(rows, columns) of each matrix."""
    return tuple(
      math.prod(self.shape[axis] for axis in side) for side in self.sides
    )

  def _is_batch(self, axis):
    # A dense layer is a stack of one: its first axis has no name.
    one = self.names[axis] is None and self.shape[axis] == 1
    return self.names[axis] in BATCH_AXES or one

  def _one_side(self, axes):
    return tuple(self.names[axis] for axis in axes) == ('heads', 'kv')


def slashed(path):
  """A tree path as text such as `layers/blocks_1/ffn/experts/gate`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def collect(params, names=None):
  """{path: Parameter} of a tree of arrays and its parallel tree of names.

  `names` has a tuple (or None: no names) where `params` has an array. Without
  any names every axis is a side.

  Raises: ValueError where the trees or the ranks differ.
  """
  shapes = {slashed(path): tuple(leaf.shape) for path, leaf in _flat(params)}
  named = dict.fromkeys(shapes) if names is None else _named(names)
  if shapes.keys() != named.keys():
    odd = sorted(shapes.keys() ^ named.keys())
    raise ValueError(
      'The trees of parameters and of axis names differ at '
      f'{_some(odd)}; derive both from one initialisation.'
    )
  found = {}
  for path, shape in shapes.items():
    axes = (None,) * len(shape) if named[path] is None else tuple(named[path])
    if len(axes) != len(shape):
      raise ValueError(
        f'{path} has shape {shape} but axis names {axes}; name every axis.'
      )
    found[path] = Parameter(path, shape, axes)
  return found


def state_names(state, params, names):
  """A tree like the optimiser state whose leaves are tuples of axis names.

  A state leaf mirrors the parameter whose path ends its own path and whose
  shape it has; it gets that parameter's names. Any other leaf (counts, Muon's
  coefficients) gets None for each of its axes: replicated.

  `state` and `params` may be `jax.eval_shape` results. Walk the answer beside
  the state, `jax.tree.map(f, state, answer)`: optax's states are tuples too,
  so the answer's leaves cannot be told from its nodes alone.
  """
  known = collect(params, names)

  def named(path, leaf):
    found = mirrored(path, leaf, known)
    return found.names if found else (None,) * len(leaf.shape)

  return jax.tree_util.tree_map_with_path(named, state)


def mirrored(path, leaf, known):
  """Of {path: Parameter}, the one that a leaf of a state mirrors, or None."""
  keys = [slashed((key,)) for key in path]
  for start in range(len(keys)):
    found = known.get('/'.join(keys[start:]))
    if found and found.shape == tuple(leaf.shape):
      return found
  return None


def _flat(tree):
  return jax.tree_util.tree_flatten_with_path(tree)[0]


def _named(names):
  flat, _ = jax.tree_util.tree_flatten_with_path(
    names, is_leaf=lambda node: node is None or isinstance(node, tuple)
  )
  return {slashed(path): value for path, value in flat}


def _some(paths, count=3):
  more = f' and {len(paths) - count} more' if len(paths) > count else ''
  return ', '.join(paths[:count]) + more
