import collections

import pytest

from moejax import data


def test_bytes_decode_what_they_encode():
  text = data.Text()
  for sample in ('', 'plain', 'été 日本 \x00\n'):
    ids = text.encode(sample)
    assert text.decode(ids) == sample
    assert text.decode([256, *ids, 256]) == sample
  assert text.vocab == 257
  assert text.end == 256


def test_bytes_replace_what_is_not_text():
  assert data.Bytes().decode([104, 255, 105]) == 'h\ufffdi'


def test_a_tokenizer_file_decodes_what_it_encodes(tokenizer_json):
  text = data.Text(tokenizer=data.TokenizerFile(tokenizer_json()))
  sample = 'the cat sat on the mat, été </s> and on and on and on'
  ids = text.encode(sample)
  assert text.decode([*ids, text.end]) == sample
  # Neither the file's padding to 9 nor its truncation to 4 is applied.
  assert len(text.encode('cat')) <= 3
  assert 9 < len(ids) < len(sample.encode())


def test_the_end_is_the_first_usual_name_or_an_id_of_its_own(tokenizer_json):
  path = tokenizer_json(('<pad>', '</s>', '<eos>'))
  tokenizer = data.TokenizerFile(path)
  assert tokenizer.end == 1
  assert data.TokenizerFile(path, end_token='<eos>').end == 2
  vocab = tokenizer.vocab
  plain = data.TokenizerFile(tokenizer_json(('<pad>', '<a>', '<b>')))
  assert plain.end == vocab
  assert plain.vocab == vocab + 1
  assert plain.digest() != tokenizer.digest()


def test_no_document_can_end_another(tokenizer_json, train_files, helpers):
  texts = [b'the cat</s>the mat', b'sat']
  tokenizer = data.TokenizerFile(tokenizer_json())
  text = data.Text({'a': train_files(texts)}, tokenizer)
  batches = list(
    text.batches('train', batch_size=1, seq_len=64, seed=0, epochs=1)
  )
  found = collections.Counter(helpers.segments(batches))
  expected = collections.Counter()
  for sample in texts:
    ids = text.encode(sample.decode())
    assert text.end not in ids
    piece = (text.end, *ids), (*ids, text.end), tuple(range(len(ids) + 1))
    expected[piece] += 1
  assert found == expected


def test_the_tokenizer_is_part_of_the_digest(tokenizer_json, train_files):
  source = train_files([b'abc'])
  tokenizer = data.TokenizerFile(tokenizer_json())
  texts = [data.Text({'a': source}), data.Text({'a': source}, tokenizer)]
  assert texts[0].digest() != texts[1].digest()


def test_a_missing_or_mistyped_tokenizer_is_refused(tmp_path, tokenizer_json):
  with pytest.raises(ValueError, match='no such file'):
    data.TokenizerFile(str(tmp_path / 'none.json'))
  (tmp_path / 'bad.json').write_text('{}')
  with pytest.raises(ValueError, match='must be a tokenizer.json'):
    _ = data.TokenizerFile(str(tmp_path / 'bad.json')).vocab
  with pytest.raises(ValueError, match="end_token='<x>' must be a token"):
    _ = data.TokenizerFile(tokenizer_json(), end_token='<x>').end


def test_invalid_utf8_is_refused_by_name_for_a_tokenizer_file(
  tokenizer_json, train_files
):
  source = train_files([b'fine', b'ab\xff'], 'array_record')
  text = data.Text({'a': source}, data.TokenizerFile(tokenizer_json()))
  with pytest.raises(ValueError, match='record 1: .* byte 2 is not'):
    text.batches('train', batch_size=1, seq_len=8, seed=0)
