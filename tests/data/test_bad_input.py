import json

import pytest

from moejax import data

GOOD = {'split': 'train', 'batch_size': 2, 'seq_len': 8, 'seed': 0}


@pytest.fixture
def source(train_files):
  return train_files([b'some text'])


@pytest.mark.parametrize(
  'change, message',
  [
    ({'split': 'dev'}, "split='dev' must be one of train"),
    ({'split': 'test'}, "split='test' has no text in 'a'; raise test_frac"),
    ({'batch_size': 0}, 'batch_size=0 must be an integer, 1 or more'),
    ({'batch_size': 2.0}, 'batch_size=2.0 must be an integer'),
    ({'seq_len': 1}, 'seq_len=1 must be an integer, 2 or more'),
    ({'seed': -1}, 'seed=-1'),
    ({'epochs': 0}, 'epochs=0'),
    ({'shard_count': 0}, 'shard_count=0'),
    ({'shard_count': 2, 'shard_index': 2}, 'shard_index=2 must lie in'),
    ({'batch_size': 3, 'shard_count': 2}, 'batch_size=3 must be divisible'),
  ],
)
def test_bad_arguments_are_refused(source, change, message):
  kwargs = GOOD | change
  with pytest.raises(ValueError, match=message) as error:
    data.Text({'a': source}).batches(kwargs.pop('split'), **kwargs)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'weights, message',
  [
    ({'a': 1, 'c': 1}, "weights name 'c', which must be one of"),
    ({}, "'a' is missing"),
    ({'a': 0}, 'a=0 must be positive'),
    ({'a': -1.0}, 'a=-1.0 must be positive'),
    ({'a': float('nan')}, 'a=nan must be positive'),
    ({'a': float('inf')}, 'a=inf must be positive'),
  ],
)
def test_bad_weights_are_refused(source, weights, message):
  with pytest.raises(ValueError, match=message):
    data.Text({'a': source}, weights=weights)


@pytest.mark.parametrize('make', [data.StandardLibrary, data.Files])
@pytest.mark.parametrize(
  'fractions, message',
  [
    ({'train_frac': 0.99}, 'sum to 1.09, which must be at most 1'),
    ({'test_frac': -0.1}, 'test_frac=-0.1 must lie between 0 and 1'),
    ({'test_frac': float('nan')}, 'test_frac=nan'),
  ],
)
def test_bad_fractions_are_refused(make, fractions, message):
  args = ('x',) if make is data.Files else ()
  with pytest.raises(ValueError, match=message):
    make(*args, **fractions)


def refuse(pattern, message, **kwargs):
  text = data.Text({'a': data.Files(str(pattern), **kwargs)})
  with pytest.raises(ValueError, match=message) as error:
    text.batches(**GOOD)
  assert '\n' not in str(error.value)


def test_an_empty_glob_is_refused(tmp_path):
  refuse(tmp_path / '*.txt', 'must match at least one file')
  (tmp_path / 'a.txt').write_text('x')
  refuse(
    tmp_path / '*.txt', 'test=.* must match', test=str(tmp_path / 'b*.txt')
  )


def test_an_unknown_suffix_is_refused(tmp_path):
  (tmp_path / 'a.csv').write_text('x')
  refuse(tmp_path / '*', 'must be one of .txt, .jsonl, .parquet, .array_record')


def test_a_file_in_two_splits_is_refused(tmp_path):
  (tmp_path / 'a.txt').write_text('x')
  path = str(tmp_path / 'a.txt')
  refuse(path, 'already in the train split', validation=path)


@pytest.mark.parametrize(
  'line, message',
  [
    (b'{"text": "a"', ':3: the line must be one JSON object'),
    (b'{"text": "\xff"}', ':3: the line must be one JSON object'),
    (b'{"text": "\\ud800"}', ':3: the line must be one JSON object'),
    (b'{"body": "a"}', r":3: field='text' .* \['body'\]"),
    (b'{"text": 1}', ":3: field='text' must name a string"),
    (b'[1]', ":3: field='text' .* list"),
  ],
)
def test_a_bad_line_is_refused_by_number(tmp_path, line, message):
  good = json.dumps({'text': 'x'}).encode()
  (tmp_path / 'a.jsonl').write_bytes(b'\n'.join([good, good, line, good]))
  refuse(
    tmp_path / 'a.jsonl',
    message,
    train_frac=1,
    validation_frac=0,
    test_frac=0,
  )


def test_a_bad_first_line_is_refused_even_where_text_is_streamed(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"body": "x"}\n')
  source = data.Files(str(tmp_path / 'a.jsonl'))
  text = data.Text({'a': source}, resident_bytes=0)
  with pytest.raises(ValueError, match="a.jsonl:1: field='text'"):
    text.batches(**GOOD)


def test_a_bad_parquet_file_or_column_is_refused(tmp_path, helpers):
  path = tmp_path / 'a.parquet'
  helpers.writers['parquet'](path, [b'x'], field='body')
  refuse(path, r"field='text' must name a column, one of \['n', 'body'\]")
  refuse(path, "field='n' must hold text, but its type is int64", field='n')
  path.write_bytes(b'not parquet at all')
  refuse(path, 'not readable as parquet')


def test_a_broken_array_record_is_refused(tmp_path, helpers):
  path = tmp_path / 'a.array_record'
  helpers.writers['array_record'](path, [b'x' * 100] * 50)
  path.write_bytes(path.read_bytes()[:200])
  refuse(path, 'not readable as array_record')


@pytest.mark.parametrize('resident_bytes', [0, 1 << 20])
def test_documents_without_text_are_refused(tmp_path, resident_bytes):
  (tmp_path / 'a.jsonl').write_text('\n' * 50)
  source = data.Files(str(tmp_path / 'a.jsonl'))
  text = data.Text({'a': source}, resident_bytes=resident_bytes)
  with pytest.raises(ValueError, match="split='train' has no text"):
    text.batches(**GOOD)
