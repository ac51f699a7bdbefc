"""Tasks made from a seed: what must be remembered, what must be worked out.

A document is a prompt, '=' and an answer, all in small letters. With
`data.Text(prompt_end='=')` the answers alone are scored.
"""

import dataclasses
import functools
import hashlib
import math
import string
from collections.abc import Mapping, Sequence

import numpy as np

from moejax.data.documents import SPLITS, Document, Documents, Part

LETTERS = string.ascii_lowercase
PROMPT_END = '='
# What tasks are written in, as `data.Characters` wants it.
ALPHABET = LETTERS + PROMPT_END


class Records:
  """A reader of documents in memory."""

  def __init__(self, texts: Sequence[str], path: str, block: int = 256):
    self.path, self.field = path, None
    self.texts = [text.encode() for text in texts]
    self.text_bytes = sum(map(len, self.texts))
    self.bounds = np.array([*range(0, len(texts), block), len(texts)])

  def read(self, start: int, stop: int, keep: np.ndarray) -> list[Document]:
    return [
      Document(self.texts[start + i], f'{self.path}:{start + i}')
      for i in np.flatnonzero(keep)
    ]


class _Task:
  """A source of documents; a subclass makes all of them, and their splits."""

  def documents(self, split: str) -> Documents:
    """The documents of one split."""
    reader, splits = self._made
    return Documents([Part(reader.path, reader, splits[split])])

  def digest(self) -> str:
    reader, splits = self._made
    total = hashlib.sha256()
    for split in SPLITS:
      kept = [reader.texts[i] for i in np.flatnonzero(splits[split])]
      total.update(split.encode() + b'\n'.join([b'', *kept, b'']))
    return total.hexdigest()

  @functools.cached_property
  def _made(self) -> tuple[Records, Mapping[str, np.ndarray]]:
    texts, split_of = self._make()
    splits = {s: split_of == i for i, s in enumerate(SPLITS)}
    return Records(texts, repr(self)), splits

  def _make(self) -> tuple[list[str], np.ndarray]:
    """All documents, and the number of the split of each."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Facts(_Task):
  """Random values of random keys: nothing helps but to remember them.

  A fact is asked for in several ways: a letter before its key. All but two of
  them are trained on; which two are validation and test is drawn for each
  fact. So every fact is seen, and no document is in two splits.

  Attributes:
    count: number of facts.
    phrasings: ways to ask for one, 3 to 26.
    key_letters, value_letters: their lengths.
    seed: of the facts.
  """

  count: int
  phrasings: int = 6
  key_letters: int = 3
  value_letters: int = 2
  seed: int = 0

  def __post_init__(self):
    if not 3 <= self.phrasings <= len(LETTERS):
      raise ValueError(
        f'phrasings={self.phrasings} must lie in [3, {len(LETTERS)}]: one for '
        'each split, and a letter for each'
      )
    if self.value_letters < 1:
      raise ValueError(f'value_letters={self.value_letters} must be positive')
    keys = len(LETTERS) ** self.key_letters
    if not 1 <= self.count <= keys:
      raise ValueError(
        f'count={self.count} must lie in [1, {keys}], the number of keys of '
        f'key_letters={self.key_letters}; change either'
      )

  def _make(self):
    rng = np.random.default_rng(self.seed)
    base = len(LETTERS)
    keys = rng.choice(base**self.key_letters, self.count, replace=False)
    values = rng.integers(0, base, (self.count, self.value_letters))
    places = rng.permuted(
      np.tile(np.arange(self.phrasings), (self.count, 1)), axis=1
    )
    # Which phrasing has place 1 is validation, 2 is test, the others train.
    split_of = np.where(places < len(SPLITS), places, 0)
    texts = [
      LETTERS[phrasing] + key + PROMPT_END + value
      for key, value in zip(
        _written(keys, base, self.key_letters), map(_text, values), strict=True
      )
      for phrasing in range(self.phrasings)
    ]
    return texts, split_of.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Rounds(_Task):
  """What was told in rounds, asked for at the end: fresh facts each time.

  A round tells the value of a key that no round before it told; the prompt ends
  in one of the keys, and its value is the answer. Nothing of a document helps
  with another, and none is in two splits: a model has to look back.

  Attributes:
    count: number of documents to train on.
    held_out: number in validation, and as many in test.
    rounds: facts of a document.
    letters: in use, 2 to 26; keys and values are one letter each.
    seed: of the documents.
  """

  count: int
  held_out: int = 1024
  rounds: int = 4
  letters: int = 26
  seed: int = 0

  def __post_init__(self):
    if not 2 <= self.letters <= len(LETTERS):
      raise ValueError(
        f'letters={self.letters} must lie in [2, {len(LETTERS)}]'
      )
    if not 1 <= self.rounds <= self.letters:
      raise ValueError(
        f'rounds={self.rounds} must lie in [1, {self.letters}], as each has a '
        'key of its own; raise letters or lower rounds'
      )
    # Half of what there is, so that drawing without repetition ends.
    there = math.perm(self.letters, self.rounds) * self.rounds
    there *= self.letters**self.rounds
    wanted = self.count + 2 * self.held_out
    if min(self.count, self.held_out) < 1 or 2 * wanted > there:
      raise ValueError(
        f'count={self.count} and twice held_out={self.held_out} must be '
        f'positive and at most {there // 2} together, half the documents of '
        f'rounds={self.rounds} and letters={self.letters}; change either'
      )

  def _make(self):
    rng = np.random.default_rng(self.seed)
    sizes = self.count, self.held_out, self.held_out
    texts = {}  # a dict, for its order
    while len(texts) < sum(sizes):
      texts[self._document(rng)] = None
    return list(texts), np.repeat(np.arange(len(SPLITS)), sizes)

  def _document(self, rng):
    keys = rng.permutation(self.letters)[: self.rounds]
    values = rng.integers(0, self.letters, self.rounds)
    asked = rng.integers(self.rounds)
    told = _text(np.stack([keys, values], 1).reshape(-1))
    return told + LETTERS[keys[asked]] + PROMPT_END + LETTERS[values[asked]]


@dataclasses.dataclass(frozen=True)
class Chains(_Task):
  """Sums of letters modulo a number, worked out one by one in the answer.

  The answer has the running sums of the first 2, 3, .. operands: each follows
  from the one before and one operand. No problem is in two splits, so a model
  is right on held-out ones only if it has learned how to add, which takes
  modulus**2 entries of a table.

  Attributes:
    count: number of problems to train on.
    held_out: number in validation, and as many in test.
    modulus: letters in use, 2 to 26; 'a' is 0.
    operands: letters to add.
    seed: of the problems.
  """

  count: int
  held_out: int = 1024
  modulus: int = 26
  operands: int = 4
  seed: int = 0

  def __post_init__(self):
    if not 2 <= self.modulus <= len(LETTERS):
      raise ValueError(f'modulus={self.modulus} must lie in [2, 26]')
    if not 2 <= self.operands <= 12:
      raise ValueError(f'operands={self.operands} must lie in [2, 12]')
    wanted = self.count + 2 * self.held_out
    there = self.modulus**self.operands
    if min(self.count, self.held_out) < 1 or wanted > there:
      raise ValueError(
        f'count={self.count} and twice held_out={self.held_out} must be '
        f'positive and at most {there} together, the number of problems of '
        f'modulus={self.modulus} and operands={self.operands}; change either'
      )

  def _make(self):
    rng = np.random.default_rng(self.seed)
    sizes = self.count, self.held_out, self.held_out
    numbers = rng.choice(self.modulus**self.operands, sum(sizes), replace=False)
    problems = _digits(numbers, self.modulus, self.operands)
    sums = problems.cumsum(axis=1)[:, 1:] % self.modulus
    texts = [
      _text(problem) + PROMPT_END + _text(answer)
      for problem, answer in zip(problems, sums, strict=True)
    ]
    return texts, np.repeat(np.arange(len(SPLITS)), sizes)


def _digits(numbers: np.ndarray, base: int, length: int) -> np.ndarray:
  """[numbers, length] digits, the first one of highest place."""
  return numbers[:, None] // base ** np.arange(length)[::-1] % base


def _text(digits: np.ndarray) -> str:
  return ''.join(LETTERS[i] for i in digits)


def _written(numbers, base, length):
  return map(_text, _digits(numbers, base, length))
