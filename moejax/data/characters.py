"""A vocabulary of a few characters, for tasks that are written in them."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from moejax.data.documents import Document


@dataclasses.dataclass(frozen=True)
class Characters:
  """The places of a text's characters in an alphabet are its ids.

  The id after the last character ends a document.

  Attributes:
    alphabet: different characters of ASCII.
  """

  alphabet: str

  def __post_init__(self):
    same = len(set(self.alphabet)) != len(self.alphabet)
    if not self.alphabet or same or not self.alphabet.isascii():
      raise ValueError(
        f'alphabet={self.alphabet!r} must be different characters of ASCII, '
        'at least one; remove repeated and other ones'
      )

  @property
  def vocab(self) -> int:
    """Number of ids, the end of a document included."""
    return len(self.alphabet) + 1

  @property
  def end(self) -> int:
    """Id of the end of a document."""
    return len(self.alphabet)

  def encode(self, text: str) -> list[int]:
    return self._ids(text.encode(), 'text').tolist()

  def decode(self, ids: Iterable[int]) -> str:
    kept = [int(i) for i in ids if i != self.end]
    for i in kept:
      if not 0 <= i < self.end:
        raise ValueError(f'id {i} must lie in [0, {self.vocab}) to be decoded')
    return ''.join(self.alphabet[i] for i in kept)

  def encode_documents(self, documents: Sequence[Document]) -> list[np.ndarray]:
    return [self._ids(d.text, d.place) for d in documents]

  def digest(self) -> str:
    return hashlib.sha256(f'characters {self.alphabet}'.encode()).hexdigest()

  @functools.cached_property
  def _id_of_byte(self) -> np.ndarray:
    table = np.full(256, self.end, np.int32)
    table[np.frombuffer(self.alphabet.encode(), np.uint8)] = np.arange(self.end)
    return table

  def _ids(self, text: bytes, place: str) -> np.ndarray:
    ids = self._id_of_byte[np.frombuffer(text, np.uint8)]
    unknown = np.flatnonzero(ids == self.end)
    if len(unknown):
      at = int(unknown[0])
      raise ValueError(
        f'{place}: byte {at} is {text[at : at + 1]!r}, which is not in '
        f'alphabet={self.alphabet!r}; add it, or use data.Bytes()'
      )
    return ids
