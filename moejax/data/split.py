"""Which split a record belongs to, from a hash of its file's name alone.

The choice depends on the file's relative name and the record's number, never
on the other files, so adding a file moves nothing between splits.
"""

import hashlib
import math

import numpy as np

from moejax.data.documents import SPLITS


def check_fractions(train: float, validation: float, test: float) -> None:
  """Refuses fractions that are not in [0, 1] or sum to more than 1."""
  fields = {'train': train, 'validation': validation, 'test': test}
  for name, value in fields.items():
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
      raise ValueError(
        f'{name}_frac={value} must lie between 0 and 1; it is the share of '
        'the documents in that split'
      )
  total = math.fsum(fields.values())
  if total > 1.0 + 1e-9:
    raise ValueError(
      f'train_frac={train}, validation_frac={validation} and test_frac={test} '
      f'sum to {total:.6g}, which must be at most 1; lower one of them'
    )


def uniform(name: str, count: int) -> np.ndarray:
  """[count] float64 in [0, 1), a hash of a name and a record's number."""
  key = hashlib.blake2b(name.encode(), digest_size=8).digest()
  with np.errstate(over='ignore'):
    x = np.arange(1, count + 1, dtype=np.uint64)
    x = x * np.uint64(0x9E3779B97F4A7C15) + np.frombuffer(key, '<u8')
    # The finaliser of splitmix64: every bit of x reaches every bit of it.
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
  return (x >> np.uint64(11)) * 2.0**-53


def assign(
  name: str, count: int, train: float, validation: float, test: float
) -> dict[str, np.ndarray]:
  """Which of a file's records belong to each split: bool [count] by split."""
  u = uniform(name, count)
  edges = np.cumsum([0.0, train, validation, test])
  # Fractions that sum to 1 up to rounding leave no record out.
  edges[edges > 1.0 - 1e-9] = 1.0
  return {
    split: (edges[i] <= u) & (u < edges[i + 1])
    for i, split in enumerate(SPLITS)
  }
