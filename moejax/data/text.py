"""Batches of packed text."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from moejax.data import pieces
from moejax.data.documents import SPLITS, Document, Documents, Source
from moejax.data.shuffle import Shuffled, shuffle_windows
from moejax.data.standard_library import StandardLibrary
from moejax.data.tokenizers import Bytes, Tokenizer

# Everything is read by the calling thread, in one order.
_IN_PROCESS = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


@dataclasses.dataclass(frozen=True)
class Text:
  """Rows of packed documents from one or more sources of text.

  A split of at most `resident_bytes` of text is tokenized once, kept in
  memory and shuffled as a whole. A larger one is read while training: blocks
  of neighbouring documents are shuffled, then their pieces within a window.

  Differs: a document longer than a row is cut into pieces; each is a segment
  of its own with positions from 0, so what came before it is not seen. Its
  inputs still begin with the token before its first target. No token is lost
  or repeated.

  Attributes:
    sources: where the text comes from, by name.
    tokenizer: text to token ids.
    weights: share of the training tokens by source, any positive scale. None
      weighs sources by their size: an epoch is all documents of all sources.
      Shares hold on average over rows to about 1 %; for text that is not
      resident, pieces per token are estimated from its first block.
    prompt_end: one token, such as '=', the first of which in a document ends
      its prompt. What follows is its answer, and what is scored; a document
      without it is scored as a whole. None scores everything.
    bins: rows that are packed together, by best fit. More fill rows better.
    resident_bytes: most text, in bytes, to keep in memory.
    window_tokens: most tokens held for shuffling text that is not resident.
    prefetch_batches: batches prepared ahead by one thread; None prepares each
      when it is asked for.
  """

  sources: Mapping[str, Source] = dataclasses.field(
    default_factory=lambda: {'stdlib': StandardLibrary()}
  )
  tokenizer: Tokenizer = Bytes()
  weights: Mapping[str, float] | None = None
  prompt_end: str | None = None
  bins: int = 128
  resident_bytes: int = 1 << 27
  window_tokens: int = 1 << 22
  prefetch_batches: int | None = None

  def __post_init__(self):
    if not self.sources:
      raise ValueError('sources={} must name at least one source of text')
    _check_weights(self.weights, self.sources)
    _check_least('bins', self.bins, 1)
    _check_least('resident_bytes', self.resident_bytes, 0)
    _check_least('window_tokens', self.window_tokens, 1)
    if self.prefetch_batches is not None:
      _check_least('prefetch_batches', self.prefetch_batches, 1)

  @property
  def vocab(self) -> int:
    """Number of token ids, the end of a document included."""
    return self.tokenizer.vocab

  @property
  def end(self) -> int:
    """Id of the end of a document."""
    return self.tokenizer.end

  def encode(self, text: str) -> list[int]:
    """Token ids of a text, without an end-of-document id."""
    return self.tokenizer.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of token ids."""
    return self.tokenizer.decode(ids)

  def digest(self) -> str:
    """Hash of the content of all splits and of the tokenizer, hexadecimal."""
    total = hashlib.sha256(self.tokenizer.digest().encode())
    for name in sorted(self.sources):
      total.update(f'{name}={self.sources[name].digest()};'.encode())
    return total.hexdigest()

  def batches(
    self,
    split: str,
    *,
    batch_size: int,
    seq_len: int,
    seed: int,
    epochs: int | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    seeded: bool | None = None,
  ) -> grain.DatasetIterator:
    """Iterates over batches of packed rows.

    A batch is a dict of int32 [batch_size // shard_count, seq_len]: `tokens`
    (inputs), `targets`, `segments` (1, 2, .. in a row; 0 is padding) and
    `positions` (from 0 in each segment); with `prompt_end` also `scored` (1
    for the targets of answers). Rows that fill up the last batch of finite
    epochs are all padding.

    The order depends on the data, the seed, batch_size and seq_len. Shards
    are neighbouring rows of one batch that does not depend on shard_count, so
    every shard packs the rows of all.

    Args:
      split: 'train', 'validation' or 'test'.
      batch_size: rows of all shards together.
      seq_len: tokens in a row.
      seed: of the order, 0 or more.
      epochs: times that every document is seen, in another order each time.
        None repeats for ever, with sources mixed by `weights`. A number ends,
        and takes every document of every source whatever the weights.
      shard_index: which of the shards to yield.
      shard_count: number of shards.
      seeded: whether the order depends on the seed; None means if epochs is
        None. Otherwise it is the same for every seed, but shuffled as well,
        so that the first batches speak for the whole split.

    Raises:
      ValueError: if an argument or the data is unusable; before any batch.
    """
    _check_arguments(split, batch_size, seq_len, seed, epochs)
    rows = _shard_rows(batch_size, shard_index, shard_count)
    seeded = epochs is None if seeded is None else seeded
    order = _Order(seq_len, _mix(seed if seeded else 0, ''), epochs)
    stream = self._pieces(split, order).map(pieces.pairs)
    stream = grain.experimental.BestFitPackIterDataset(
      stream,
      length_struct={'pair': seq_len},
      num_packing_bins=self.bins,
      seed=order.seed,
    )
    scored = self.prompt_end is not None
    stack = pieces.Stack(rows.start, rows.stop, seq_len, scored)
    stream = stream.batch(batch_size, batch_fn=stack)
    if self.prefetch_batches is not None:
      stream = grain.experimental.ThreadPrefetchIterDataset(
        stream, prefetch_buffer_size=self.prefetch_batches
      )
    return iter(stream)

  def _pieces(self, split: str, order: '_Order') -> grain.IterDataset:
    """Pieces of all sources, mixed."""
    found = self._documents(split)
    resident = sum(d.text_bytes for d in found.values()) <= self.resident_bytes
    # Where not resident, the first block speaks for the lengths of all.
    tokens = {
      name: self._tokens(split, name)
      if resident
      else self._tokenized([_first_text(documents)])
      for name, documents in found.items()
    }
    _check_some(split, {n: t.count for n, t in tokens.items()}, self.weights)
    sample = {n: pieces.Pieces(t, order.seq_len) for n, t in tokens.items()}
    make, parts = (_stream, sample) if resident else (self._read, found)
    if self.weights is None or order.epochs is not None:
      return make([parts[n] for n in sorted(parts) if tokens[n].count], order)
    # Grain mixes by pieces; the weights are of tokens.
    shares, streams = [], []
    for name in sorted(parts):
      shares.append(self.weights[name] * len(sample[name]) / tokens[name].count)
      own = dataclasses.replace(order, seed=_mix(order.seed, name))
      streams.append(make([parts[name]], own))
    return grain.IterDataset.mix(streams, shares)

  def _documents(self, split: str) -> dict[str, Documents]:
    found = {n: s.documents(split) for n, s in self.sources.items()}
    counts = {n: d.count for n, d in found.items()}
    _check_some(split, counts, self.weights)
    return found

  @functools.cached_property
  def _resident(self) -> dict[tuple[str, str], pieces.Tokens]:
    return {}

  def _tokens(self, split: str, name: str) -> pieces.Tokens:
    key = split, name
    if key not in self._resident:
      documents = self.sources[name].documents(split)
      blocks = (documents[i] for i in range(len(documents)))
      self._resident[key] = self._tokenized(blocks)
    return self._resident[key]

  def _tokenized(self, blocks) -> pieces.Tokens:
    return pieces.Tokens(blocks, self.tokenizer, self._prompt_end_id)

  @functools.cached_property
  def _prompt_end_id(self) -> int | None:
    if self.prompt_end is None:
      return None
    ids = self.encode(self.prompt_end)
    if len(ids) != 1:
      raise ValueError(
        f'prompt_end={self.prompt_end!r} must be one token, but is {len(ids)} '
        f'({ids}); choose a text that the tokenizer does not cut'
      )
    return ids[0]

  def _read(self, parts: list[Documents], order: '_Order'):
    """Pieces of documents that are read when their turn comes."""
    stream = grain.experimental.FlatMapIterDataset(
      _stream(parts, order),
      pieces.Cut(self.tokenizer, order.seq_len, self._prompt_end_id),
    )
    # A window beyond an epoch would read the same text again to fill itself.
    epoch_tokens = sum(d.text_bytes + d.count for d in parts)
    window_tokens = min(self.window_tokens, epoch_tokens)
    window = max(1, window_tokens // order.seq_len)
    return shuffle_windows(stream, window, order.seed)


@dataclasses.dataclass(frozen=True)
class _Order:
  seq_len: int
  seed: int
  epochs: int | None


def _stream(parts: Sequence, order: _Order) -> grain.IterDataset:
  """Elements of all parts, shuffled anew in each epoch."""
  stream = grain.MapDataset.concatenate(
    [grain.MapDataset.source(part) for part in parts]
  )
  stream = Shuffled(stream, order.seed)
  return stream.repeat(order.epochs).to_iter_dataset(_IN_PROCESS)


def _mix(seed: int, name: str) -> int:
  """A seed of its own for a source, below 2**31.

  Grain counts batches of bins up from the seed it packs with, so seeds of
  runs must not be neighbours either.
  """
  entropy = [seed, *name.encode()]
  return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


def _shard_rows(batch_size: int, index: int, count: int) -> slice:
  _check_least('shard_count', count, 1)
  if not 0 <= index < count:
    raise ValueError(
      f'shard_index={index} must lie in [0, shard_count={count}); number the '
      'shards from 0'
    )
  if batch_size % count:
    raise ValueError(
      f'batch_size={batch_size} must be divisible by shard_count={count}; '
      f'use {batch_size - batch_size % count or count}'
    )
  rows = batch_size // count
  return slice(index * rows, (index + 1) * rows)


def _check_arguments(split, batch_size, seq_len, seed, epochs) -> None:
  if split not in SPLITS:
    raise ValueError(f'split={split!r} must be one of {", ".join(SPLITS)}')
  _check_least('batch_size', batch_size, 1)
  _check_least('seq_len', seq_len, 2)
  _check_least('seed', seed, 0)
  if epochs is not None:
    _check_least('epochs', epochs, 1)


def _check_least(field: str, value: int, least: int) -> None:
  whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
  if not whole or value < least:
    raise ValueError(f'{field}={value!r} must be an integer, {least} or more')


def _check_weights(weights, sources) -> None:
  if weights is None:
    return
  for name in weights:
    if name not in sources:
      raise ValueError(
        f'weights name {name!r}, which must be one of the sources '
        f'{sorted(sources)}; correct the name'
      )
  for name in sources:
    if name not in weights:
      raise ValueError(
        f'weights={dict(weights)} must weigh every source, but {name!r} is '
        'missing; add it or remove the source'
      )
  for name, weight in weights.items():
    real = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (real and math.isfinite(weight) and weight > 0):
      raise ValueError(
        f'weights: {name}={weight} must be positive and finite; remove a '
        'source that should not be read'
      )


def _check_some(split: str, counts: Mapping[str, int], weights) -> None:
  """Refuses a split without documents, or a weighted source without any."""
  empty = [name for name, count in counts.items() if not count]
  if len(empty) == len(counts) or (empty and weights is not None):
    raise ValueError(
      f'split={split!r} has no text in {", ".join(map(repr, empty))}; raise '
      f'{split}_frac, give it a glob of its own or add documents'
    )


def _first_text(documents: Documents) -> list[Document]:
  """The first block that holds text; empty if there is none."""
  blocks = (documents[i] for i in range(len(documents)))
  return next((b for b in blocks if any(d.text for d in b)), [])
