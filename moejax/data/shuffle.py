"""Orders of a data set, a new one in each epoch."""

import functools

import grain
import numpy as np


class Shuffled(grain.MapDataset):
  """A random permutation of a data set for every epoch of it.

  Epoch i is positions [i * length, (i + 1) * length). One permutation is held
  at a time, eight bytes per element, so this wants epochs read in turn.

  Differs: grain's own shuffle computes each index without memory, but takes
  a time inverse to the length below 2**16 elements (about 1 ms at a length of
  10), and epoch 1 of one seed is epoch 0 of the next seed.
  """

  def __init__(self, parent: grain.MapDataset, seed: int):
    super().__init__(parent)
    self._seed = seed
    self._permutation = functools.lru_cache(maxsize=1)(self._make)

  def __len__(self) -> int:
    return len(self._parent)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    epoch, within = divmod(index, len(self))
    return self._parent[int(self._permutation(epoch)[within])]

  def __str__(self) -> str:
    return f'Shuffled(seed={self._seed})'

  def _make(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self._seed, epoch)).permutation(len(self))


def shuffle_windows(
  stream: grain.IterDataset, window: int, seed: int
) -> grain.IterDataset:
  """The elements of a stream, permuted within runs of `window` of them.

  Differs: grain's own window shuffle is as slow as its shuffle where windows
  are short, and resumes in the same way: it reads the window again.
  """

  def permute(index: int, elements: list) -> list:
    order = np.random.default_rng((seed, index)).permutation(len(elements))
    return [elements[i] for i in order]

  windows = stream.batch(window, batch_fn=list).map_with_index(permute)
  return grain.experimental.FlatMapIterDataset(windows, _Each())


class _Each(grain.experimental.FlatMapTransform):
  def flat_map(self, element: list) -> list:
    return element
