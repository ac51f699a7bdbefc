"""Cuts documents into pieces of at most one row, and rows into batches.

A document d_0 .. d_{n-1} is n + 1 pairs of an input and its target: the
inputs are [end, d_0 .. d_{n-1}], the targets [d_0 .. d_{n-1}, end]. A piece
is a run of pairs of one document. It travels as the ids that it spans, one
more than it has pairs. Empty documents have no pieces.
"""

from collections.abc import Iterable, Sequence

import grain
import numpy as np

from moejax.data.documents import Document
from moejax.data.tokenizers import Tokenizer


class Tokens:
  """All tokens of a split in memory, in the smallest integers that hold them.

  Attributes:
    ids: [tokens + 1] end, d_0 .. d_{n-1}, end, d_0 .. : documents share ends.
    starts: [documents + 1] where documents begin, with the end before them;
      the last one is where one more would begin.
  """

  def __init__(
    self, blocks: Iterable[Sequence[Document]], tokenizer: Tokenizer
  ):
    dtype = np.min_scalar_type(tokenizer.vocab - 1)
    end = np.array([tokenizer.end], dtype)
    runs, lengths = [end], []
    for block in blocks:
      for ids in tokenizer.encode_documents(block):
        if len(ids):
          runs += [ids.astype(dtype), end]
          lengths.append(len(ids) + 1)
    self.ids = np.concatenate(runs)
    self.starts = np.cumsum([0, *lengths])

  @property
  def count(self) -> int:
    """Number of pairs of an input and its target."""
    return len(self.ids) - 1


class Pieces:
  """Random access to the pieces of a split in memory: a grain data source."""

  def __init__(self, tokens: Tokens, seq_len: int):
    starts, stops = tokens.starts[:-1], tokens.starts[1:]
    counts = -((starts - stops) // seq_len)
    first = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(first, counts)
    self._ids = tokens.ids
    self._starts = np.repeat(starts, counts) + within * seq_len
    self._stops = np.minimum(self._starts + seq_len, np.repeat(stops, counts))

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> np.ndarray:
    return self._ids[self._starts[index] : self._stops[index] + 1]

  def __repr__(self) -> str:
    return f'Pieces({len(self)})'


class Cut(grain.experimental.FlatMapTransform):
  """The pieces of a block of documents, as they are read."""

  def __init__(self, tokenizer: Tokenizer, seq_len: int):
    self._tokenizer, self._seq_len = tokenizer, seq_len

  def flat_map(self, element: Sequence[Document]) -> Pieces:
    return Pieces(Tokens([element], self._tokenizer), self._seq_len)


def pairs(ids: np.ndarray) -> dict[str, np.ndarray]:
  """[pairs, 2] input and target of a piece, under the key that is packed.

  Both in one array: packing costs time per array.
  """
  pair = np.empty((len(ids) - 1, 2), np.int32)
  pair[:, 0], pair[:, 1] = ids[:-1], ids[1:]
  return {'pair': pair}


class Stack:
  """Stacks a host's share of the rows of a batch.

  Rows that are missing from the last batch become padding.
  """

  def __init__(self, start: int, stop: int, seq_len: int):
    self._start, self._stop, self._seq_len = start, stop, seq_len

  def __call__(self, rows: Sequence[dict]) -> dict[str, np.ndarray]:
    shape = self._stop - self._start, self._seq_len
    names = ('tokens', 'targets', 'segments', 'positions')
    batch = {name: np.zeros(shape, np.int32) for name in names}
    for i, row in enumerate(rows[self._start : self._stop]):
      batch['tokens'][i], batch['targets'][i] = row['pair'].T
      batch['segments'][i] = row['pair_segment_ids']
      batch['positions'][i] = row['pair_positions']
    return batch
