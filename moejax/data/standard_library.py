"""Documents that every machine has: the source of Python's own library."""

import dataclasses
import functools
import os
import sysconfig

import numpy as np

from moejax.data import documents
from moejax.data.documents import SPLITS, Documents, Part
from moejax.data.formats import PlainText
from moejax.data.split import assign, check_fractions, uniform

# Tests; packages of others; tables and programs written by programs.
_SKIPPED_FOLDERS = frozenset(
  ('test', 'tests', 'idlelib', 'turtledemo', 'ensurepip', 'lib-dynload')
  + ('dist-packages', 'site-packages', '__pycache__', '__phello__')
  + ('encodings', 'lib2to3', 'pydoc_data')
)
# Files that differ between installations of the same version.
_SKIPPED_FILES = ('_sysconfigdata', 'sitecustomize', 'usercustomize')


@dataclasses.dataclass(frozen=True)
class StandardLibrary:
  """Source text of the running Python's standard library, a file a document.

  About 8 MB in Python 3.11; other versions hold other text, which the digest
  tells. Without tests, generated tables and bundled packages. Files are split
  by a hash of their relative path.

  Attributes:
    max_bytes: most text to take, shared among the splits by their fractions;
      files are taken in an order given by a hash of their path, and one that
      does not fit is passed over. None takes all.
    train_frac, validation_frac, test_frac: shares of the files.
  """

  max_bytes: int | None = None
  train_frac: float = 0.9
  validation_frac: float = 0.05
  test_frac: float = 0.05

  def __post_init__(self):
    check_fractions(self.train_frac, self.validation_frac, self.test_frac)
    if self.max_bytes is not None and self.max_bytes < 1:
      raise ValueError(
        f'max_bytes={self.max_bytes} must be positive; None takes all'
      )

  def documents(self, split: str) -> Documents:
    """The documents of one split."""
    return self._splits[split]

  def digest(self) -> str:
    return documents.digest(self._splits)

  @functools.cached_property
  def _splits(self) -> dict[str, Documents]:
    fractions = (self.train_frac, self.validation_frac, self.test_frac)
    parts = {split: [] for split in SPLITS}
    for name, path in _source_files():
      keeps = assign(name, 1, *fractions)
      for key, keep in keeps.items():
        if keep[0]:
          parts[key].append(Part(name, PlainText(path), keep))
    if self.max_bytes is not None:
      for key, fraction in zip(SPLITS, fractions, strict=True):
        parts[key] = _cap(parts[key], int(self.max_bytes * fraction))
    return {key: Documents(value) for key, value in parts.items()}


def _source_files() -> list[tuple[str, str]]:
  """Relative names and paths of the files, sorted by name."""
  root = sysconfig.get_path('stdlib')
  found = []
  for folder, folders, names in os.walk(root):
    folders[:] = [
      f
      for f in folders
      if f not in _SKIPPED_FOLDERS and not f.startswith('config-')
    ]
    for name in names:
      if name.endswith('.py') and not name.startswith(_SKIPPED_FILES):
        path = os.path.join(folder, name)
        found.append((os.path.relpath(path, root).replace(os.sep, '/'), path))
  return sorted(found)


def _cap(parts: list[Part], max_bytes: int) -> list[Part]:
  """A choice of files that holds at most `max_bytes`, in their order."""
  # Hashed under another key than the split's, which is small here by choice.
  order = np.argsort(
    [uniform(f'cap {part.name}', 1)[0] for part in parts], kind='stable'
  )
  kept, left_bytes = set(), max_bytes
  for i in order:
    if parts[i].reader.text_bytes <= left_bytes:
      left_bytes -= parts[i].reader.text_bytes
      kept.add(int(i))
  return [part for i, part in enumerate(parts) if i in kept]
