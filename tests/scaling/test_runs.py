import csv

import pytest

from moejax.scaling import runs


def _flat(row, prefix=''):
  out = {}
  for key, value in row.items():
    if isinstance(value, dict):
      out |= _flat(value, f'{prefix}{key}.')
    else:
      out[prefix + key] = value
  return out


def test_a_table_on_disk_reads_as_the_rows_that_were_written(rows, tmp_path):
  table = rows()
  flat = [_flat(r) for r in table]
  path = tmp_path / 'results.csv'
  with open(path, 'w', newline='', encoding='utf-8') as f:
    writer = csv.DictWriter(f, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
  direct, _ = runs.parse(table)
  read, excluded = runs.parse(runs.load(path))
  assert not excluded
  for one, other in zip(direct, read, strict=True):
    assert (one.name, one.variant, one.seed) == (
      other.name, other.variant, other.seed,
    )  # fmt: skip
    numbers = ('budget', 'activation', 'size', 'tokens', 'flops', 'loss')
    for name in numbers:
      assert getattr(one, name) == getattr(other, name)
  assert runs.provenance(read) == [
    ('commit', ['0123abcd']),
    ('hardware', ['cpu, 2 cores']),
    ('versions.jax', ['0.10.2']),
    ('data digest', ['a1b2c3d4']),
    ('seed', ['0']),
  ]


def test_failed_and_impossible_rows_are_excluded_with_the_reason(rows):
  table = rows()
  table[0] = {**table[0], 'status': 'failed', 'error': 'out of memory'}
  table[1] = {**table[1], 'loss': float('nan')}
  table[2] = {**table[2], 'tokens': -5}
  good, excluded = runs.parse(table)
  assert len(good) == len(table) - 3
  reasons = [e.reason for e in excluded]
  assert reasons == [
    'failed: out of memory',
    'loss=nan is not a positive number',
    'tokens=-5 is not a positive number',
  ]


def test_no_usable_row_is_an_error_that_names_the_fix(rows):
  failed = [{**r, 'status': 'failed', 'error': 'nan loss'} for r in rows()]
  with pytest.raises(ValueError, match='none can be used.*nan loss.*rerun'):
    runs.parse(failed)
  with pytest.raises(ValueError, match='no rows; run the sweep first'):
    runs.parse([])


def test_a_missing_column_is_named_beside_those_found(rows):
  table = [{k: v for k, v in r.items() if k != 'tokens'} for r in rows()]
  with pytest.raises(ValueError, match='lack the columns tokens; found .*seed'):
    runs.parse(table)
  with pytest.raises(ValueError, match="size='params' must be one of"):
    runs.parse(rows(), size='params')


def test_variants_go_from_dense_to_sparse(rows):
  good, _ = runs.parse(rows()[::-1])
  assert runs.variants(good) == ['dense', 'moe 1/4', 'moe 1/16']
  assert runs.dense_variant(good) == 'dense'
  sparse = [r for r in good if r.variant != 'dense']
  assert runs.dense_variant(sparse) is None


def test_the_same_run_written_twice_counts_once(rows):
  table = rows(seeds=2)
  again = {**table[3], 'name': 'a copy'}
  good, excluded = runs.parse([*table, again])
  assert len(good) == len(table)
  assert excluded[0].name == 'a copy'
  assert 'the same cell, seed and loss' in excluded[0].reason


def test_a_seed_is_read_from_the_labels_first(rows):
  row = rows()[0]
  labelled = {**row, 'seed': 7, 'labels': {**row['labels'], 'seed': '3'}}
  without = {k: v for k, v in row.items() if k != 'seed'}
  good, _ = runs.parse([labelled, {**row, 'seed': 5}, without])
  assert [r.seed for r in good] == [3, 5, None]
