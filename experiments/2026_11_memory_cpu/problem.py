"""What both sides compute: the tables of a memory layer, or all of it."""

import numpy as np

# Tokens, rows of each, keys of a side, width of a row: the 227M/1.2B shape.
TOKENS, ROWS, KEYS, WIDTH = 2048, 32, 360, 192
SLOTS = KEYS**2
# Width of the model; ranks, and numbers of a query for each; cores.
MODEL, RANKS, SIZE, CORES = 768, 2, 192, 2


def arrays(part: str) -> dict[str, np.ndarray]:
  """f32 inputs and parameters, and int32 `ids` of `tables`.

  Both sides must choose the same slots of all tokens for `bench.py` to go on.
  """
  draw = np.random.default_rng(0)

  def normal(*size, std=1.0):
    return np.float32(std) * draw.standard_normal(size, np.float32)

  if part == 'tables':
    return dict(
      pre=normal(SLOTS, WIDTH),
      values=normal(SLOTS, WIDTH),
      ids=draw.integers(0, SLOTS, (TOKENS, ROWS)).astype(np.int32),
      x=normal(TOKENS, WIDTH),
      weights=normal(TOKENS, ROWS),
      dy=normal(TOKENS, WIDTH),
    )
  ones = np.full(SIZE, SIZE**-0.25, np.float32)
  return dict(
    pre_values=normal(SLOTS, WIDTH),
    values=normal(SLOTS, WIDTH),
    query=normal(MODEL, 2, RANKS, SIZE, std=MODEL**-0.5),
    keys=normal(2, KEYS, RANKS, SIZE),
    query_scale=ones,
    key_scale=ones.copy(),
    cores=draw.uniform(size=(CORES, RANKS, RANKS)).astype(np.float32),
    pre=normal(MODEL, WIDTH, std=MODEL**-0.5),
    out=normal(WIDTH, MODEL, std=WIDTH**-0.5),
    x=normal(TOKENS, MODEL),
    dy=normal(TOKENS, MODEL),
  )


def moved_bytes() -> int:
  """The least that must move for the tables, forward and backward.

  Each of two tables: rows read once forward and once backward, and a dense
  gradient that is cleared, then read and written where it is touched. Rows that
  several tokens name are counted once; x, y and weights are not counted.
  """
  touched = np.unique(arrays('tables')['ids']).size
  rows = 2 * touched + SLOTS + 2 * touched
  return 2 * rows * WIDTH * 4
