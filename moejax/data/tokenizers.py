"""Tokenizers: text to token ids and back."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import tokenizers

from moejax.data.documents import Document

# Names that tokenizer files give to the end of a document, first match wins.
_END_TOKENS = (
  '<|endoftext|>',
  '<|end_of_text|>',
  '</s>',
  '<eos>',
  '<|eos|>',
  '[EOS]',
  '[SEP]',
)


class Tokenizer(Protocol):
  """Attributes: `vocab`, number of ids; `end`, id of the end of a document."""

  vocab: int
  end: int

  def encode(self, text: str) -> list[int]:
    """Token ids of a text, without an end-of-document id."""

  def decode(self, ids: Iterable[int]) -> str:
    """Text of token ids; the end of a document is the empty text."""

  def encode_documents(self, documents: Sequence[Document]) -> list:
    """Token ids of documents: a list of integer arrays."""

  def digest(self) -> str:
    """A hash of everything that the ids depend on, in hexadecimal."""


@dataclasses.dataclass(frozen=True)
class Bytes:
  """The bytes of UTF-8 text are its ids; 256 ends a document.

  Documents may hold any bytes. Decoding replaces what is not UTF-8.
  """

  vocab = 257
  end = 256

  def encode(self, text: str) -> list[int]:
    return list(text.encode())

  def decode(self, ids: Iterable[int]) -> str:
    kept = [int(i) for i in ids if i != self.end]
    for i in kept:
      if not 0 <= i < 256:
        raise ValueError(f'id {i} must lie in [0, {self.vocab}) to be decoded')
    return bytes(kept).decode(errors='replace')

  def encode_documents(self, documents: Sequence[Document]) -> list[np.ndarray]:
    return [np.frombuffer(d.text, np.uint8) for d in documents]

  def digest(self) -> str:
    return hashlib.sha256(b'bytes, end 256').hexdigest()


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
  """A tokenizer of the `tokenizers` library, from its `tokenizer.json`.

  Special tokens spelled out in a text are encoded as ordinary text, so that
  no document can end another. Truncation and padding in the file are ignored.

  Attributes:
    path: the file.
    end_token: the token that ends a document. None takes the first of the
      usual names that the file has, or appends an id after the file's own.
  """

  path: str
  end_token: str | None = None

  def __post_init__(self):
    if not os.path.isfile(self.path):
      raise ValueError(
        f'path={str(self.path)!r} must be a tokenizer.json, but there is no '
        'such file; correct the path'
      )

  @functools.cached_property
  def _tokenizer(self) -> tokenizers.Tokenizer:
    try:
      tokenizer = tokenizers.Tokenizer.from_file(str(self.path))
    except Exception as error:  # The library raises bare exceptions.
      raise ValueError(
        f'path={str(self.path)!r} must be a tokenizer.json ({error}); '
        'correct the path'
      ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer

  @functools.cached_property
  def _file_vocab(self) -> int:
    ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
    return max(ids, default=-1) + 1

  @functools.cached_property
  def end(self) -> int:
    """Id of the end of a document."""
    if self.end_token is not None:
      found = self._tokenizer.token_to_id(self.end_token)
      if found is None:
        raise ValueError(
          f'end_token={self.end_token!r} must be a token of {self.path}; '
          'name one that it has, or None'
        )
      return found
    found = map(self._tokenizer.token_to_id, _END_TOKENS)
    return next((i for i in found if i is not None), self._file_vocab)

  @functools.cached_property
  def vocab(self) -> int:
    """Number of ids, the end of a document included."""
    return max(self._file_vocab, self.end + 1)

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    kept = [int(i) for i in ids if i != self.end]
    return self._tokenizer.decode(kept, skip_special_tokens=False)

  def encode_documents(self, documents: Sequence[Document]) -> list[np.ndarray]:
    texts = [_decode(document) for document in documents]
    found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in found]

  def digest(self) -> str:
    with open(self.path, 'rb') as file:
      content = hashlib.file_digest(file, 'sha256').hexdigest()
    return hashlib.sha256(f'{content} {self.end}'.encode()).hexdigest()


def _decode(document: Document) -> str:
  try:
    return document.text.decode()
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{document.place}: a tokenizer file needs valid UTF-8, but byte '
      f'{error.start} is not; correct the text or use data.Bytes()'
    ) from None
