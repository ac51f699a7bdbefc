"""Cuts documents into pieces of at most one row, and rows into batches.

A document d_0 .. d_{n-1} is n + 1 pairs of an input and its target: the
inputs are [end, d_0 .. d_{n-1}], the targets [d_0 .. d_{n-1}, end]. A piece
is a run of pairs of one document. It travels as the ids that it spans, one
more than it has pairs, and whether each target is scored, where that differs.
Empty documents have no pieces.
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
    scored: bool [tokens], whether the target of a pair is part of an answer;
      None without `prompt_end`.
  """

  def __init__(
    self,
    blocks: Iterable[Sequence[Document]],
    tokenizer: Tokenizer,
    prompt_end: int | None = None,
  ):
    dtype = np.min_scalar_type(tokenizer.vocab - 1)
    end = np.array([tokenizer.end], dtype)
    runs, lengths, answers = [end], [], []
    for block in blocks:
      for ids in tokenizer.encode_documents(block):
        if len(ids):
          runs += [ids.astype(dtype), end]
          lengths.append(len(ids) + 1)
          if prompt_end is not None:
            answers.append(answer(ids, prompt_end))
    self.ids = np.concatenate(runs)
    self.starts = np.cumsum([0, *lengths])
    self.scored = None
    if prompt_end is not None:
      self.scored = np.concatenate([np.zeros(0, bool), *answers])

  @property
  def count(self) -> int:
    """Number of pairs of an input and its target."""
    return len(self.ids) - 1


def answer(ids: np.ndarray, prompt_end: int) -> np.ndarray:
  """bool [ids + 1]: the targets after the first `prompt_end`, or all.

  The last target is the end of the document.
  """
  ends = np.flatnonzero(ids == prompt_end)
  return np.arange(len(ids) + 1) > (ends[0] if len(ends) else -1)


class Pieces:
  """Random access to the pieces of a split in memory: a grain data source.

  An element is the ids and what is scored, see `Tokens`.
  """

  def __init__(self, tokens: Tokens, seq_len: int):
    starts, stops = tokens.starts[:-1], tokens.starts[1:]
    counts = -((starts - stops) // seq_len)
    first = np.cumsum(counts) - counts
    within = np.arange(counts.sum()) - np.repeat(first, counts)
    self._ids, self._scored = tokens.ids, tokens.scored
    self._starts = np.repeat(starts, counts) + within * seq_len
    self._stops = np.minimum(self._starts + seq_len, np.repeat(stops, counts))

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
    start, stop = self._starts[index], self._stops[index]
    scored = None if self._scored is None else self._scored[start:stop]
    return self._ids[start : stop + 1], scored

  def __repr__(self) -> str:
    return f'Pieces({len(self)})'


class Cut(grain.experimental.FlatMapTransform):
  """The pieces of a block of documents, as they are read."""

  def __init__(
    self, tokenizer: Tokenizer, seq_len: int, prompt_end: int | None = None
  ):
    self._tokenizer, self._seq_len = tokenizer, seq_len
    self._prompt_end = prompt_end

  def flat_map(self, element: Sequence[Document]) -> Pieces:
    tokens = Tokens([element], self._tokenizer, self._prompt_end)
    return Pieces(tokens, self._seq_len)


def pairs(piece: tuple[np.ndarray, np.ndarray | None]) -> dict[str, np.ndarray]:
  """[pairs, 2] input and target of a piece, under the key that is packed.

  A third column says what is scored. All in one array: packing costs time per
  array.
  """
  ids, scored = piece
  columns = [ids[:-1], ids[1:]] + ([] if scored is None else [scored])
  pair = np.empty((len(ids) - 1, len(columns)), np.int32)
  for i, column in enumerate(columns):
    pair[:, i] = column
  return {'pair': pair}


class Stack:
  """Stacks a host's share of the rows of a batch.

  Rows that are missing from the last batch become padding.
  """

  def __init__(self, start: int, stop: int, seq_len: int, scored: bool = False):
    self._start, self._stop, self._seq_len = start, stop, seq_len
    self._columns = ('tokens', 'targets') + (('scored',) if scored else ())

  def __call__(self, rows: Sequence[dict]) -> dict[str, np.ndarray]:
    shape = self._stop - self._start, self._seq_len
    names = (*self._columns, 'segments', 'positions')
    batch = {name: np.zeros(shape, np.int32) for name in names}
    for i, row in enumerate(rows[self._start : self._stop]):
      for name, column in zip(self._columns, row['pair'].T, strict=True):
        batch[name][i] = column
      batch['segments'][i] = row['pair_segment_ids']
      batch['positions'][i] = row['pair_positions']
    return batch
