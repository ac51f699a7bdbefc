import numpy as np
import pytest

from moejax import data
from moejax.data import formats
from moejax.data.split import assign, uniform


def texts_of(source, split):
  documents = source.documents(split)
  return [d.text for i in range(len(documents)) for d in documents[i]]


@pytest.mark.parametrize('kind', ['txt', 'jsonl', 'parquet', 'array_record'])
def test_every_kind_round_trips_in_order(train_files, helpers, kind):
  texts = ['été', '', '日本\n', 'x' * 9]
  texts = [t.encode() for t in texts] + helpers.random_texts([5] * 600)
  assert texts_of(train_files(texts, kind), 'train') == texts


@pytest.mark.parametrize('kind', ['txt', 'jsonl', 'parquet', 'array_record'])
def test_splits_are_disjoint_and_complete(tmp_path, helpers, kind):
  texts = [f'document {i}'.encode() for i in range(400)]
  helpers.writers[kind](tmp_path / f'x.{kind}', texts)
  source = data.Files(
    str(tmp_path / f'*.{kind}'), validation_frac=0.06, test_frac=0.04
  )
  found = {s: texts_of(source, s) for s in ('train', 'validation', 'test')}
  assert sorted(sum(found.values(), [])) == sorted(texts)
  # Four standard deviations of a binomial count.
  for split, share in (('train', 0.9), ('validation', 0.06), ('test', 0.04)):
    spread = 4 * (400 * share * (1 - share)) ** 0.5
    assert abs(len(found[split]) - 400 * share) < spread


def test_another_file_moves_no_record(tmp_path, helpers):
  texts = [f'document {i}'.encode() for i in range(100)]
  helpers.writers['jsonl'](tmp_path / 'b.jsonl', texts)
  pattern = str(tmp_path / '**' / '*.jsonl')
  before = texts_of(data.Files(pattern), 'train')
  (tmp_path / 'a').mkdir()
  helpers.writers['jsonl'](tmp_path / 'a' / 'a.jsonl', [b'other'] * 20)
  after = texts_of(data.Files(pattern), 'train')
  assert [t for t in after if t != b'other'] == before


def test_the_split_does_not_depend_on_the_folder_above_the_glob(
  tmp_path, helpers
):
  found = []
  for folder in ('one', 'two'):
    (tmp_path / folder).mkdir()
    texts = [f'document {i}'.encode() for i in range(50)]
    helpers.writers['jsonl'](tmp_path / folder / 'x.jsonl', texts)
    source = data.Files(str(tmp_path / folder / '*.jsonl'))
    found.append((texts_of(source, 'validation'), source.digest()))
  assert found[0] == found[1]


def test_hashes_are_uniform_and_stay_as_they_are():
  u = np.concatenate([uniform(f'file {i}', 100) for i in range(200)])
  counts, _ = np.histogram(u, 20, (0, 1))
  # 19 degrees of freedom: chi-squared exceeds 43.8 once in a thousand.
  assert (((counts - 1000) ** 2) / 1000).sum() < 43.8
  kept = assign('a/b.txt', 40, 0.5, 0.25, 0.25)
  recorded = [4, 7, 8, 13, 20, 21]
  assert np.flatnonzero(kept['test'])[:6].tolist() == recorded


def test_globs_of_their_own_fill_the_splits(tmp_path, helpers):
  for name in ('train', 'validation'):
    helpers.writers['jsonl'](tmp_path / f'{name}.jsonl', [name.encode()] * 9)
  source = data.Files(
    str(tmp_path / 'tr*.jsonl'), validation=str(tmp_path / 'va*.jsonl')
  )
  assert texts_of(source, 'train') == [b'train'] * 9
  assert texts_of(source, 'validation') == [b'validation'] * 9
  assert texts_of(source, 'test') == []


def test_the_digest_tells_content_splits_and_fields_apart(tmp_path, helpers):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"text": "a", "body": "b"}\n' * 40)
  pattern = str(tmp_path / '*.jsonl')
  found = {
    data.Files(pattern).digest(),
    data.Files(pattern, field='body').digest(),
    data.Files(pattern, train_frac=0.5).digest(),
  }
  path.write_text('{"text": "a", "body": "c"}\n' * 40)
  found.add(data.Files(pattern).digest())
  assert len(found) == 4
  assert data.Files(pattern).digest() in found


def test_large_jsonl_is_read_in_blocks_of_lines(tmp_path, helpers, monkeypatch):
  monkeypatch.setattr(formats, '_BLOCK_BITS', 7)
  monkeypatch.setattr(formats, '_SCAN_BYTES', 50)
  texts = helpers.random_texts(range(60))
  helpers.writers['jsonl'](tmp_path / 'x.jsonl', texts)
  reader = formats.open_file(str(tmp_path / 'x.jsonl'), 'text')
  assert len(reader.bounds) > 10
  keep = np.ones(60, bool)
  found = [
    d.text
    for a, b in zip(reader.bounds[:-1], reader.bounds[1:], strict=True)
    for d in reader.read(a, b, keep[a:b])
  ]
  assert found == texts


def test_messages_name_the_line(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('{"text": "a"}\n\n{"text": "b"}\r\n')
  documents = data.Files(
    str(path), train_frac=1, validation_frac=0, test_frac=0
  ).documents('train')
  places = [(d.text, d.place) for d in documents[0]]
  assert places == [
    (b'a', f'{path}:1'),
    (b'', f'{path}:2'),
    (b'b', f'{path}:3'),
  ]
