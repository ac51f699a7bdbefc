"""Tasks: what their documents say, their splits, and what is scored."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from moejax import data
from moejax.data.documents import SPLITS

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
FACTS = data.Facts(count=40, phrasings=5)
CHAINS = data.Chains(count=50, held_out=10, modulus=7, operands=3)
ROUNDS = data.Rounds(count=60, held_out=10, rounds=3, letters=5)
TASKS = pytest.mark.parametrize(
  'task', [FACTS, CHAINS, ROUNDS], ids=['facts', 'chains', 'rounds']
)


def texts(task, split):
  documents = task.documents(split)
  return [
    document.text.decode()
    for i in range(len(documents))
    for document in documents[i]
  ]


def batches(source, split='train', **fields):
  given = dict(tokenizer=data.Characters(LETTERS + '='), prompt_end='=')
  text = data.Text({'task': source}, **(given | fields))
  return text.batches(split, batch_size=2, seq_len=24, seed=0, epochs=1)


def test_the_answer_of_a_chain_is_its_running_sums():
  found = [text for split in SPLITS for text in texts(CHAINS, split)]
  for text in found:
    prompt, answer = text.split('=')
    numbers = [LETTERS.index(letter) for letter in prompt]
    assert len(numbers) == 3 and max(numbers) < 7
    sums = list(itertools.accumulate(numbers))[1:]
    assert answer == ''.join(LETTERS[total % 7] for total in sums)
  sizes = [len(texts(CHAINS, split)) for split in SPLITS]
  assert sizes == [50, 10, 10] and len(set(found)) == 70


def test_the_answer_of_rounds_is_what_was_told_of_the_key():
  found = [text for split in SPLITS for text in texts(ROUNDS, split)]
  asked = collections.Counter()
  for text in found:
    prompt, answer = text.split('=')
    told = dict(zip(prompt[:6:2], prompt[1:6:2], strict=True))
    assert len(told) == 3 and len(prompt) == 7
    assert told[prompt[6]] == answer
    asked[prompt[:6:2].index(prompt[6])] += 1
  assert set(''.join(found)) == set('abcde=')
  assert min(asked[place] for place in range(3)) > 10
  sizes = [len(texts(ROUNDS, split)) for split in SPLITS]
  assert sizes == [60, 10, 10] and len(set(found)) == 80


def test_every_fact_is_trained_on_and_asked_in_other_words_elsewhere():
  ways = {split: collections.defaultdict(set) for split in SPLITS}
  for split in SPLITS:
    for text in texts(FACTS, split):
      prompt, value = text.split('=')
      ways[split][prompt[1:], value].add(prompt[0])
  facts = set(ways['train'])
  # One value for each key, whoever asks.
  assert len(facts) == len({key for key, _ in facts}) == 40
  for fact in facts:
    seen = [ways[split][fact] for split in SPLITS]
    assert [len(way) for way in seen] == [3, 1, 1]
    assert set.union(*seen) == set('abcde')


@TASKS
def test_a_task_depends_on_its_seed_alone(task):
  again, other = (dataclasses.replace(task, seed=seed) for seed in (0, 1))
  assert task.digest() == again.digest() != other.digest()
  assert texts(task, 'test') == texts(again, 'test')


@TASKS
@pytest.mark.parametrize('resident_bytes', [0, 1 << 20])
def test_the_scored_targets_are_the_answers_and_their_ends(
  task, resident_bytes
):
  letters = dict(enumerate(LETTERS + '=.'))
  found = collections.Counter()
  for batch in batches(task, resident_bytes=resident_bytes):
    assert not batch['scored'][batch['segments'] == 0].any()
    for row, segments in enumerate(batch['segments']):
      for segment in range(1, segments.max() + 1):
        where = (segments == segment) & (batch['scored'][row] > 0)
        ids = batch['targets'][row, where].tolist()
        found[''.join(letters[i] for i in ids)] += 1
  assert found == collections.Counter(
    text.split('=')[1] + '.' for text in texts(task, 'train')
  )


def test_a_document_without_an_answer_is_scored_as_a_whole(train_files):
  source = train_files([b'abc', b'ab=c', b'=='])
  (batch,) = batches(source)
  scored = {
    tuple(batch['targets'][0, batch['segments'][0] == segment].tolist()): tuple(
      batch['scored'][0, batch['segments'][0] == segment].tolist()
    )
    for segment in (1, 2, 3)
  }
  assert scored == {
    (0, 1, 2, 27): (1, 1, 1, 1),
    (0, 1, 26, 2, 27): (0, 0, 0, 1, 1),
    (26, 26, 27): (0, 1, 1),
  }


def test_an_answer_that_a_row_cuts_stays_an_answer(train_files):
  text = data.Text(
    {'all': train_files([b'a=bcdefghijk'])},
    tokenizer=data.Characters(LETTERS + '='),
    prompt_end='=',
  )
  found = text.batches('train', batch_size=1, seq_len=5, seed=0, epochs=1)
  assert sorted(batch['scored'][0].tolist() for batch in found) == [
    [0, 0, 1, 1, 1],
    [1, 1, 1, 0, 0],  # the last two are padding
    [1, 1, 1, 1, 1],
  ]


def test_without_an_end_of_prompts_nothing_is_scored_apart():
  (batch, *_) = batches(CHAINS, prompt_end=None)
  assert 'scored' not in batch


def test_the_end_of_a_prompt_must_be_one_token():
  with pytest.raises(ValueError, match=r"prompt_end='==' must be one token"):
    batches(CHAINS, prompt_end='==')


def test_characters_go_there_and_back():
  letters = data.Characters('abc=')
  ids = letters.encode('cab=')
  assert ids == [2, 0, 1, 3] and letters.vocab == 5
  assert letters.decode([*ids, letters.end]) == 'cab='
  assert letters.digest() != data.Characters('acb=').digest()
  with pytest.raises(ValueError, match=r"text: byte 1 is b'd'"):
    letters.encode('ad')
  with pytest.raises(ValueError, match=r'id 7 must lie in \[0, 5\)'):
    letters.decode([7])


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: data.Characters('aba'), 'must be different characters'),
    (lambda: data.Characters(''), 'must be different characters'),
    (lambda: data.Facts(count=10, phrasings=2), r'lie in \[3, 26\]'),
    (lambda: data.Facts(count=27, key_letters=1), r'count=27 must lie'),
    (lambda: data.Facts(count=1, value_letters=0), 'must be positive'),
    (lambda: data.Rounds(count=1, letters=27), r'lie in \[2, 26\]'),
    (lambda: data.Rounds(count=1, rounds=3, letters=2), r'lie in \[1, 2\]'),
    (
      lambda: data.Rounds(count=7, held_out=1, rounds=1, letters=4),
      'at most 8 together',
    ),
    (lambda: data.Chains(count=1, modulus=27), r'lie in \[2, 26\]'),
    (lambda: data.Chains(count=1, operands=1), r'lie in \[2, 12\]'),
    (
      lambda: data.Chains(count=7, held_out=1, modulus=2, operands=3),
      'at most 8 together',
    ),
  ],
)
def test_what_cannot_be_made_is_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_facts_are_as_many_as_their_keys_allow():
  source = data.Facts(count=26, key_letters=1, phrasings=3)
  assert len({t[1] for t in texts(source, 'train')}) == 26
  assert np.mean([len(t) for t in texts(source, 'test')]) == 5
