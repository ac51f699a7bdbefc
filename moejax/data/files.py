"""Documents from files that the user names with glob patterns."""

import dataclasses
import functools
import glob
import os

import numpy as np

from moejax.data import documents, formats
from moejax.data.documents import SPLITS, Documents, Part, Reader
from moejax.data.split import assign, check_fractions


@dataclasses.dataclass(frozen=True)
class Files:
  """Documents in local files: .txt, .jsonl, .parquet or .array_record.

  A .txt file is one document; the others hold one per record. Each record is
  put into a split by a hash of its file's name, relative to the fixed part
  of the pattern, and of its number. If `validation` or `test` is given, all
  that `pattern` matches is for training, and a split without a pattern of
  its own is empty.

  Attributes:
    pattern: glob, `**` allowed.
    field: key (.jsonl) or column (.parquet) of the text.
    validation, test: globs of these splits; None splits by the hash.
    train_frac, validation_frac, test_frac: shares of the documents.
  """

  pattern: str
  field: str = 'text'
  validation: str | None = None
  test: str | None = None
  train_frac: float = 0.9
  validation_frac: float = 0.05
  test_frac: float = 0.05

  def __post_init__(self):
    check_fractions(self.train_frac, self.validation_frac, self.test_frac)

  def documents(self, split: str) -> Documents:
    """The documents of one split.

    Raises:
      ValueError: if a pattern matches no file, or a file of another kind, or
        a file of two splits, or a file cannot be read.
    """
    return self._splits[split]

  def digest(self) -> str:
    return documents.digest(self._splits)

  @functools.cached_property
  def _splits(self) -> dict[str, Documents]:
    if self.validation is None and self.test is None:
      return self._hashed()
    return self._named()

  def _hashed(self) -> dict[str, Documents]:
    parts = {split: [] for split in SPLITS}
    fractions = (self.train_frac, self.validation_frac, self.test_frac)
    for name, reader in self._open('pattern', self.pattern):
      keeps = assign(name, int(reader.bounds[-1]), *fractions)
      for key, keep in keeps.items():
        parts[key].append(Part(name, reader, keep))
    return {key: Documents(value) for key, value in parts.items()}

  def _named(self) -> dict[str, Documents]:
    patterns = (self.pattern, self.validation, self.test)
    owner, found = {}, {}
    for key, pattern in zip(SPLITS, patterns, strict=True):
      field = 'pattern' if key == 'train' else key
      files = [] if pattern is None else self._open(field, pattern)
      for _, reader in files:
        path = os.path.realpath(reader.path)
        if path in owner:
          raise ValueError(
            f'{field}={pattern!r} matches {reader.path!r}, which is already '
            f'in the {owner[path]} split; splits must not share files, so '
            'narrow one of the patterns'
          )
        owner[path] = key
      found[key] = Documents([_whole(*file) for file in files])
    return found

  def _open(self, field: str, pattern: str) -> list[tuple[str, Reader]]:
    names = _match(field, pattern)
    return [(name, formats.open_file(path, self.field)) for name, path in names]


def _whole(name: str, reader: Reader) -> Part:
  return Part(name, reader, np.ones(int(reader.bounds[-1]), bool))


def _match(field: str, pattern: str) -> list[tuple[str, str]]:
  """Names and paths of the files that a pattern matches, sorted by name."""
  expanded = os.path.expanduser(pattern)
  paths = [p for p in glob.glob(expanded, recursive=True) if os.path.isfile(p)]
  if not paths:
    raise ValueError(
      f'{field}={pattern!r} must match at least one file, but matches none '
      f'(from {os.getcwd()!r}); correct the glob'
    )
  for path in sorted(paths):
    if os.path.splitext(path)[1] not in formats.SUFFIXES:
      raise ValueError(
        f'{field}={pattern!r} matches {path!r}, but the suffix must be one '
        f'of {", ".join(formats.SUFFIXES)}; narrow the glob or rename the file'
      )
  root = _fixed_folder(expanded)
  return sorted(
    (os.path.relpath(path, root).replace(os.sep, '/'), path) for path in paths
  )


def _fixed_folder(pattern: str) -> str:
  """The folder above the first wildcard of a pattern."""
  folder = os.path.dirname(pattern)
  while glob.has_magic(folder):
    folder = os.path.dirname(folder)
  return folder or '.'
