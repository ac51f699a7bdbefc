"""Checks of batches on the host, where indexing by a bad id is silent."""

from collections.abc import Mapping

import numpy as np


def check_tokens(batch: Mapping[str, np.ndarray], vocab: int) -> None:
  """Checks that token and target ids lie in [0, vocab).

  Devices do not: an id outside clamps, or gives NaN.

  Args:
    batch: int [B, T] arrays under `tokens` and `targets`.
    vocab: number of ids that the model knows.

  Raises:
    ValueError: naming the first id outside, its row and its position.
  """
  for name in ('tokens', 'targets'):
    ids = np.asarray(batch[name])
    bad = (ids < 0) | (ids >= vocab)
    if bad.any():
      row, position = np.argwhere(bad)[0]
      raise ValueError(
        f'{name}: id {ids[row, position]} in row {row}, position {position} '
        f'must lie in [0, vocab={vocab}); raise the vocabulary of the model '
        'or use the tokenizer that it was made for'
      )
