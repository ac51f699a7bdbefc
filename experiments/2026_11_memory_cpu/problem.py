"""What both sides compute: the table part of a memory layer."""

import numpy as np

# Tokens, rows of each, slots, width of a row: the 227M/1.2B shape.
TOKENS, ROWS, SLOTS, WIDTH = 2048, 32, 360**2, 192
NAMES = ('pre', 'values', 'x', 'weights', 'dy')


def arrays() -> dict[str, np.ndarray]:
  """Both tables, ids, and f32 inputs of the products and the sums."""
  draw = np.random.default_rng(0)

  def normal(*size):
    return draw.standard_normal(size, np.float32)

  return dict(
    pre=normal(SLOTS, WIDTH),
    values=normal(SLOTS, WIDTH),
    ids=draw.integers(0, SLOTS, (TOKENS, ROWS)).astype(np.int32),
    x=normal(TOKENS, WIDTH),
    weights=normal(TOKENS, ROWS),
    dy=normal(TOKENS, WIDTH),
  )


def moved_bytes() -> int:
  """The least that must move, forward and backward.

  Each of two tables: rows read once forward and once backward, and a dense
  gradient that is cleared, then read and written where it is touched. Rows that
  several tokens name are counted once; x, y and weights are not counted.
  """
  touched = np.unique(arrays()['ids']).size
  rows = 2 * touched + SLOTS + 2 * touched
  return 2 * rows * WIDTH * 4
