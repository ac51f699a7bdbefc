import collections
import json

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from moejax import data

KINDS = pytest.mark.parametrize(
  'kwargs',
  [
    pytest.param({}, id='resident'),
    pytest.param({'resident_bytes': 0, 'window_tokens': 64}, id='streamed'),
    pytest.param({'prefetch_batches': 2}, id='prefetched'),
    pytest.param({'weights': {'a': 1, 'b': 3}}, id='mixed'),
    pytest.param(
      {'weights': {'a': 1, 'b': 3}, 'resident_bytes': 0}, id='mixed streamed'
    ),
  ],
)


@pytest.fixture
def sources(train_files, helpers):
  return {
    'a': train_files(helpers.random_texts(), name='a'),
    'b': train_files(helpers.random_texts(seed=1), 'parquet', name='b'),
  }


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def start(text, *, seed=0, batch_size=4, **kwargs):
  return text.batches(
    'train', batch_size=batch_size, seq_len=16, seed=seed, **kwargs
  )


@KINDS
def test_equal_arguments_give_equal_batches(sources, kwargs):
  first, second = data.Text(sources, **kwargs), data.Text(sources, **kwargs)
  np.testing.assert_equal(take(start(first), 20), take(start(second), 20))


@KINDS
def test_the_seed_sets_the_order(sources, kwargs):
  text = data.Text(sources, **kwargs)
  a, b = take(start(text, seed=0), 5), take(start(text, seed=1), 5)
  assert any((x['tokens'] != y['tokens']).any() for x, y in zip(a, b))  # noqa: B905


def test_epochs_of_neighbouring_seeds_differ(train_files, helpers):
  # One piece per row, so that rows tell the order of the pieces.
  source = train_files(helpers.random_texts([15] * 12))
  text = data.Text({'a': source}, bins=1)
  rows = np.concatenate(
    [b['tokens'] for b in take(start(text, batch_size=12), 2)]
  )
  other = next(start(text, batch_size=12, seed=1))['tokens']
  assert sorted(rows[:12].tolist()) == sorted(rows[12:].tolist())
  assert (rows[:12] != rows[12:]).any()
  assert (rows[12:] != other).any()


@KINDS
def test_a_fresh_iterator_resumes_exactly_at_every_step(sources, kwargs):
  text = data.Text(sources, bins=5, **kwargs)
  iterator, states, batches = start(text), [], []
  for _ in range(24):
    states.append(json.dumps(iterator.get_state()))
    batches.append(next(iterator))
  for i, state in enumerate(states):
    fresh = start(data.Text(sources, bins=5, **kwargs))
    fresh.set_state(json.loads(state))
    np.testing.assert_equal(take(fresh, 4)[: 24 - i], batches[i : i + 4])


@pytest.mark.parametrize('resident_bytes', [0, 1 << 20])
def test_finite_batches_resume_exactly_to_their_end(
  train_files, helpers, resident_bytes
):
  source = train_files(helpers.random_texts())
  text = data.Text({'a': source}, bins=5, resident_bytes=resident_bytes)

  class Finite:
    def __iter__(self):
      return start(text, epochs=2, seeded=True, seed=3)

  grain.experimental.assert_equal_output_after_checkpoint(Finite())


def test_a_checkpoint_of_orbax_holds_the_iterator(sources, tmp_path):
  text = data.Text(sources)
  iterator = start(text)
  take(iterator, 3)
  with ocp.CheckpointManager(tmp_path / 'run') as manager:
    saved = ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator))
    manager.save(3, args=saved)
    manager.wait_until_finished()
    after = take(iterator, 3)
    fresh = start(data.Text(sources))
    manager.restore(
      3,
      args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)),
    )
  np.testing.assert_equal(take(fresh, 3), after)


@pytest.mark.parametrize('epochs', [None, 1])
@pytest.mark.parametrize('count', [2, 4])
def test_shards_are_the_rows_of_one_global_batch(sources, epochs, count):
  text = data.Text(sources)
  kwargs = {'batch_size': 8, 'epochs': epochs}
  whole = list(zip(range(6), start(text, **kwargs)))  # noqa: B905
  shards = [
    start(text, shard_index=i, shard_count=count, **kwargs)
    for i in range(count)
  ]
  for _, batch in whole:
    rows = [next(shard) for shard in shards]
    joined = {k: np.concatenate([r[k] for r in rows]) for k in batch}
    np.testing.assert_equal(joined, batch)


@pytest.mark.parametrize('resident_bytes', [0, 1 << 20])
def test_weights_are_shares_of_the_tokens(
  tmp_path, train_files, helpers, resident_bytes
):
  # Lengths differ twenty-fold, so shares of pieces would be far off. Sources
  # are told apart by the case of their letters.
  short = helpers.random_texts([10] * 50)
  long = [t.upper() for t in helpers.random_texts([200] * 10, seed=1)]
  sources = {
    'short': train_files(short, name='short'),
    'long': train_files(long, name='long'),
  }
  text = data.Text(
    sources, weights={'short': 1, 'long': 3}, resident_bytes=resident_bytes
  )
  batches = text.batches('train', batch_size=8, seq_len=256, seed=0)
  count = collections.Counter()
  for batch in take(batches, 100):
    targets = batch['targets'][batch['segments'] > 0]
    count['short'] += (targets >= ord('a')).sum() - (targets == 256).sum()
    count['long'] += (targets <= ord('Z')).sum()
  # 11 pairs hold 10 letters, 201 hold 200; grain rounds shares to 1 %.
  short_share, long_share = count['short'] * 11 / 10, count['long'] * 201 / 200
  share = short_share / (short_share + long_share)
  assert abs(share - 0.25) < 0.005


def test_without_weights_an_epoch_is_all_of_all_sources(sources, helpers):
  found = collections.Counter(
    helpers.segments(start(data.Text(sources), epochs=1))
  )
  texts = helpers.random_texts() + helpers.random_texts(seed=1)
  assert found == helpers.expected_segments(texts, 16)


def test_finite_batches_take_everything_whatever_the_weights(sources):
  plain = data.Text(sources)
  mixed = data.Text(sources, weights={'a': 1, 'b': 50})
  np.testing.assert_equal(
    list(start(plain, epochs=1)), list(start(mixed, epochs=1))
  )
