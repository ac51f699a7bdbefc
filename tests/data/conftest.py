"""Small files of documents, and what batches must hold by hand."""

import collections
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
from array_record.python import array_record_module

from moejax import data

# Around a row of 16 tokens (15 bytes fill one exactly), longer, and empty.
LENGTHS = (1, 2, 14, 15, 16, 17, 0, 31, 32, 40, 100, 3, 5, 8, 0, 250)


def random_texts(lengths=LENGTHS, seed=0):
  rng = np.random.default_rng(seed)
  return [bytes(rng.integers(97, 123, n, np.uint8)) for n in lengths]


def write_jsonl(path, texts, field='text'):
  lines = [json.dumps({field: t.decode(), 'n': len(t)}) for t in texts]
  path.write_text('\n'.join(lines))


def write_parquet(path, texts, field='text', rows=3):
  table = pyarrow.table(
    {'n': [len(t) for t in texts], field: [t.decode() for t in texts]}
  )
  pyarrow.parquet.write_table(table, path, row_group_size=rows)


def write_array_record(path, texts):
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for text in texts:
    writer.write(text)
  writer.close()


def write_txt(path, texts):
  for i, text in enumerate(texts):
    (path.parent / f'{path.stem}_{i:03}.txt').write_bytes(text)


WRITERS = {
  'txt': write_txt,
  'jsonl': write_jsonl,
  'parquet': write_parquet,
  'array_record': write_array_record,
}


def segments(batches):
  """Every segment of every row: (tokens, targets, positions) as tuples."""
  for batch in batches:
    for row in range(len(batch['tokens'])):
      ids = batch['segments'][row]
      for segment in range(1, ids.max() + 1):
        where = np.flatnonzero(ids == segment)
        yield tuple(
          tuple(batch[name][row, where].tolist())
          for name in ('tokens', 'targets', 'positions')
        )


def expected_segments(texts, seq_len, end=256):
  """The multiset of segments, from the definition, one token at a time."""
  found = collections.Counter()
  for text in texts:
    whole = [end, *text, end]
    pairs = [(whole[i], whole[i + 1]) for i in range(len(text) + 1)]
    while pairs and text:
      piece, pairs = pairs[:seq_len], pairs[seq_len:]
      tokens, targets = zip(*piece, strict=True)
      found[tokens, targets, tuple(range(len(piece)))] += 1
  return found


@pytest.fixture
def train_files(tmp_path):
  """Function: texts in a file of a kind -> source with all of it in train."""

  def make(texts, kind='jsonl', name='all'):
    folder = tmp_path / name
    folder.mkdir()
    WRITERS[kind](folder / f'{name}.{kind}', texts)
    return data.Files(
      str(folder / f'*.{kind}'), train_frac=1, validation_frac=0, test_frac=0
    )

  return make


@pytest.fixture
def tokenizer_json(tmp_path):
  """Function: special tokens -> path of a small trained tokenizer.json."""

  def make(special=('<pad>', '</s>')):
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False
    )
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=list(special),
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    )
    model.train_from_iterator(['the cat sat on the mat'] * 5, trainer)
    model.enable_truncation(4)
    model.enable_padding(length=9)
    path = tmp_path / 'tokenizer.json'
    model.save(str(path))
    return str(path)

  return make


@pytest.fixture
def helpers():
  """The plain functions of this file; tests are not a package."""
  names = collections.namedtuple(
    'Helpers', 'random_texts segments expected_segments writers'
  )
  return names(random_texts, segments, expected_segments, WRITERS)
