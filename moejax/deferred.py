"""Rows that note what an expert does to them, for it to be done elsewhere.

An expert is called where its parameters are whole; its products belong where
the rows are, inside a `jax.shard_map` that holds some of the experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from moejax.rows import Layers


class Deferred(Layers):
  """Rows of a width: what is asked of them is noted, and done by `__call__`.

  Functions given to `map` must hold no arrays of their own.

  Attributes:
    width: of the rows.
    matrices: [E, in, out] each, all that were asked for so far.
  """

  def __init__(self, width: int):
    self.width = width
    self.matrices: list[jax.Array] = []
    self._apply: Callable = lambda rows, matrices: rows

  def __call__(self, rows, matrices: Sequence[jax.Array]):
    """The same done to `rows`, with `matrices` in the place of the noted."""
    return self._apply(rows, matrices)

  def dot(self, w_EDF: jax.Array) -> Deferred:
    i = self._note(w_EDF)
    return self._then(
      w_EDF.shape[-1], lambda rows, found: self(rows, found).dot(found[i])
    )

  def map(self, f: Callable, *others: Deferred) -> Deferred:
    def apply(rows, found):
      return self(rows, found).map(f, *(o(rows, found) for o in others))

    return self._then(self.width, apply)

  def feed_forward(self, gate_EDF, up_EDF, down_EFD, activation) -> Deferred:
    noted = [
      None if w is None else self._note(w) for w in (gate_EDF, up_EDF, down_EFD)
    ]

    def apply(rows, found):
      matrices = (None if i is None else found[i] for i in noted)
      return self(rows, found).feed_forward(*matrices, activation)

    return self._then(down_EFD.shape[-1], apply)

  def _note(self, w):
    self.matrices.append(w)
    return len(self.matrices) - 1

  def _then(self, width, apply):
    rows = Deferred(width)
    rows.matrices, rows._apply = self.matrices, apply
    return rows
