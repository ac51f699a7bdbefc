"""Documents of one split of a source, read in blocks.

A block is a run of neighbouring records of one file: what is read at once.
Blocks are read in any order, so a split needs no memory beyond one block and
one bit of bookkeeping per record.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

SPLITS = ('train', 'validation', 'test')


class Document(NamedTuple):
  """One text, as bytes, and where it was found (for messages)."""

  text: bytes
  place: str


class Reader(Protocol):
  """One file of records.

  Attributes:
    path: where the file is.
    field: what holds the text in a record, None if the record is the text.
    bounds: [blocks + 1] record numbers at which blocks begin; the last one is
      the number of records.
    text_bytes: an estimate of the bytes of text in the file.
  """

  path: str
  field: str | None
  bounds: np.ndarray
  text_bytes: int

  def read(self, start: int, stop: int, keep: np.ndarray) -> list[Document]:
    """Documents of the records in [start, stop) whose `keep` is true."""


class Source(Protocol):
  """What `data.Text` reads from. Cheap to construct; files open on use."""

  def documents(self, split: str) -> 'Documents':
    """The documents of 'train', 'validation' or 'test'."""

  def digest(self) -> str:
    """A hash of the content of all splits, in hexadecimal."""


@dataclasses.dataclass(frozen=True)
class Part:
  """The records of one file that belong to a split.

  Attributes:
    name: a stable name of the file, the same on every machine.
    keep: [records] whether the record belongs to the split.
  """

  name: str
  reader: Reader
  keep: np.ndarray


class Documents:
  """Random access to the blocks of a split: a grain data source.

  Attributes:
    parts: the files, in order.
    count: number of documents, empty ones included.
    text_bytes: estimate of the text in the split.
  """

  def __init__(self, parts: Sequence[Part]):
    self.parts = tuple(part for part in parts if part.keep.any())
    self.count = sum(int(part.keep.sum()) for part in self.parts)
    self.text_bytes = sum(
      int(part.reader.text_bytes * part.keep.mean()) for part in self.parts
    )
    self._blocks = [
      (part, int(start), int(stop))
      for part in self.parts
      for start, stop in zip(
        part.reader.bounds[:-1], part.reader.bounds[1:], strict=True
      )
      if part.keep[start:stop].any()
    ]

  def __len__(self) -> int:
    return len(self._blocks)

  def __getitem__(self, index: int) -> list[Document]:
    part, start, stop = self._blocks[index]
    return part.reader.read(start, stop, part.keep[start:stop])

  def __repr__(self) -> str:
    return f'Documents(files={len(self.parts)}, documents={self.count})'


def digest(splits: Mapping[str, Documents]) -> str:
  """Hash of the files' content and of which records each split keeps."""
  total = hashlib.sha256()
  content = {}
  for split, documents in splits.items():
    total.update(f'{split}:{len(documents.parts)};'.encode())
    for part in documents.parts:
      path = part.reader.path
      if path not in content:
        with open(path, 'rb') as file:
          content[path] = hashlib.file_digest(file, 'sha256').hexdigest()
      keep = hashlib.sha256(np.packbits(part.keep)).hexdigest()
      field = part.reader.field
      entry = (part.name, content[path], field, len(part.keep), keep)
      total.update(repr(entry).encode())
  return total.hexdigest()
