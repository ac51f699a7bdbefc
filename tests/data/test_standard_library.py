import os
import sysconfig

import pytest

from moejax import data

SPLITS = ('train', 'validation', 'test')


def contents(source, split):
  documents = source.documents(split)
  return {d.place: d.text for i in range(len(documents)) for d in documents[i]}


def test_every_split_has_source_text_and_shares_no_file():
  found = [contents(data.StandardLibrary(), split) for split in SPLITS]
  assert all(found)
  together = {path for files in found for path in files}
  assert len(together) == sum(map(len, found))
  root = sysconfig.get_path('stdlib')
  names = {os.path.relpath(path, root) for path in together}
  assert {'dataclasses.py', os.path.join('json', 'decoder.py')} <= names
  folders = {part for name in names for part in name.split(os.sep)[:-1]}
  assert not folders & {'site-packages', 'test', 'tests', 'idlelib'}


@pytest.mark.parametrize('max_bytes', [100_000, 1_000_000])
def test_max_bytes_caps_the_text_of_every_split(max_bytes):
  source = data.StandardLibrary(max_bytes=max_bytes)
  shares = dict(zip(SPLITS, (0.9, 0.05, 0.05), strict=True))
  for split, share in shares.items():
    size = sum(map(len, contents(source, split).values()))
    assert 0.5 * share * max_bytes < size <= share * max_bytes


def test_the_choice_and_the_digest_are_stable():
  first, second = (data.StandardLibrary(max_bytes=200_000) for _ in range(2))
  for split in SPLITS:
    assert contents(first, split) == contents(second, split)
  assert first.digest() == second.digest()
  assert first.digest() != data.StandardLibrary(max_bytes=300_000).digest()


def test_the_default_text_is_the_standard_library():
  text = data.Text()
  batch = next(text.batches('train', batch_size=2, seq_len=256, seed=0))
  assert 'import' in text.decode(
    i
    for b in text.batches(
      'validation', batch_size=2, seq_len=256, seed=0, epochs=1
    )
    for i in b['tokens'][0]
  )
  assert (batch['segments'] > 0).mean() > 0.9
