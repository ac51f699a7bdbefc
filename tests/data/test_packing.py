import collections

import numpy as np
import pytest

from moejax import data

RESIDENT = [pytest.param({}, id='resident')]
STREAMED = [pytest.param({'resident_bytes': 0}, id='streamed')]
BOTH = pytest.mark.parametrize('kwargs', RESIDENT + STREAMED)


def epoch(text, seq_len, batch_size=4, **kwargs):
  kwargs = {'seed': 0, 'epochs': 1, **kwargs}
  return list(
    text.batches('train', batch_size=batch_size, seq_len=seq_len, **kwargs)
  )


@BOTH
@pytest.mark.parametrize('kind', ['txt', 'jsonl', 'parquet', 'array_record'])
@pytest.mark.parametrize('bins', [1, 128])
def test_an_epoch_holds_every_piece_exactly_once(
  train_files, helpers, kwargs, kind, bins
):
  texts = helpers.random_texts()
  source = train_files(texts, kind)
  for seq_len in (2, 16, 33):
    text = data.Text({'a': source}, bins=bins, **kwargs)
    found = collections.Counter(helpers.segments(epoch(text, seq_len)))
    assert found == helpers.expected_segments(texts, seq_len)


@BOTH
def test_several_shuffled_epochs_hold_every_piece_as_often(
  train_files, helpers, kwargs
):
  texts = helpers.random_texts()
  text = data.Text({'a': train_files(texts)}, window_tokens=64, **kwargs)
  found = collections.Counter(
    helpers.segments(epoch(text, 16, epochs=3, seeded=True, seed=5))
  )
  once = helpers.expected_segments(texts, 16)
  assert found == once + once + once


@BOTH
def test_endless_batches_repeat_every_piece_evenly(
  train_files, helpers, kwargs
):
  texts = helpers.random_texts()
  text = data.Text({'a': train_files(texts)}, bins=4, **kwargs)
  batches = text.batches('train', batch_size=4, seq_len=16, seed=1)
  once = helpers.expected_segments(texts, 16)
  found, epochs = collections.Counter(), 10
  while found.total() < epochs * once.total():
    found.update(helpers.segments([next(batches)]))
  assert found.keys() == once.keys()
  # Packing and, when streamed, the window reach into the next epoch or two.
  for key, count in once.items():
    assert abs(found[key] - epochs * count) <= 2 * count


def test_rows_are_runs_of_segments_and_then_padding(train_files, helpers):
  texts = helpers.random_texts()
  for batch in epoch(data.Text({'a': train_files(texts)}), 16):
    for name in ('tokens', 'targets', 'segments', 'positions'):
      assert batch[name].shape == (4, 16)
      assert batch[name].dtype == np.int32
    for row in batch['segments']:
      used = row[row > 0]
      assert (row[: len(used)] > 0).all()
      assert set(np.diff(used)) <= {0, 1}
      assert not len(used) or used[0] == 1


def test_the_last_batch_is_padded_with_empty_rows(train_files, helpers):
  text = data.Text({'a': train_files(helpers.random_texts([40, 40, 40]))})
  batches = epoch(text, 41, batch_size=2)
  used = [(b['segments'] > 0).any(axis=1).tolist() for b in batches]
  assert used == [[True, True], [True, False]]
  assert not batches[-1]['tokens'][1].any()


def test_packing_wastes_little(train_files, helpers):
  lengths = np.random.default_rng(0).integers(1, 300, 600)
  text = data.Text({'a': train_files(helpers.random_texts(lengths))})
  batches = epoch(text, 128, batch_size=1)
  assert np.mean([b['segments'] > 0 for b in batches]) > 0.95


def test_finite_batches_come_in_one_order_whatever_the_seed(
  train_files, helpers
):
  text = data.Text({'a': train_files(helpers.random_texts())})
  a, b = epoch(text, 16, seed=0), epoch(text, 16, seed=7)
  np.testing.assert_equal(a, b)


@BOTH
def test_the_first_finite_batches_speak_for_the_whole_split(
  train_files, kwargs
):
  text = data.Text(
    {'a': train_files([b'a' * 8000, b'b' * 8000])}, bins=1, **kwargs
  )
  batches = epoch(text, 50)
  first = np.concatenate([b['tokens'] for b in batches[: len(batches) // 2]])
  # 160 of 320 pieces without replacement: five standard deviations.
  assert abs((first == ord('a')).mean() - 0.5) < 0.14
