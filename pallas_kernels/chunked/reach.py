"""What links the tokens of a chunk to the state."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Reach(NamedTuple):
  """Of chunks of C tokens; r is 1 for queries alone, 2 with keys below them.

  A chunk reads `before * (reads S)` from the state S before it, and leaves
  `through * S + writes^T (after * x)` if it writes the rows x. A decay per
  channel is in `reads` and `writes`, one per head in `before` and `after`.

  Attributes:
    reads: [n, r C, K].
    writes: [n, C, K].
    before: [n, r C, 1], or `None` for 1.
    after: [n, C, 1], or `None` for 1.
    through: [n, K or 1, 1], or `None` for 1.
  """

  reads: jax.Array
  writes: jax.Array
  before: jax.Array | None
  after: jax.Array | None
  through: jax.Array | None


def times(factor, x):
  """`factor * x`, where a factor of `None` is 1."""
  return x if factor is None else factor * x
