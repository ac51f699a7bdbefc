"""The plan of the flagship sweep, told without running anything."""

import re
import time

import pytest

from moejax import main


def dry(capsys, tmp_path, *words):
  with pytest.raises(SystemExit) as ended:
    main.main([
      'moejax',
      f'--workdir={tmp_path / "run"}',
      '--dry-run',
      *words,
    ])  # fmt: skip
  assert ended.value.code == 0
  assert not (tmp_path / 'run').exists()
  return capsys.readouterr().out


def table(text):
  lines = [line for line in text.splitlines() if line.startswith('|')]
  head, _, *rows = [
    [cell.strip() for cell in line.strip('|').split('|')] for line in lines
  ]
  return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_pod_grid_is_planned_in_seconds_about_the_best_sizes(
  capsys, tmp_path
):
  start_s = time.process_time()
  text = dry(capsys, tmp_path, '--config=configs/scaling.py:scale=pod')
  assert time.process_time() - start_s < 20
  rows = table(text)
  assert len(rows) == 36 and '0 dropped' in text
  for first in range(0, 36, 4):
    ratios = [float(row['N / N*']) for row in rows[first : first + 4]]
    assert ratios[0] < 0.8 and ratios[-1] > 1.2
  assert {abs(float(row['spent'].rstrip('%'))) < 1 for row in rows} == {True}
  assert re.search(r'\d+h\d\dm of training', text)


def test_the_hand_laid_grid_is_told_as_it_stands(capsys, tmp_path):
  rows = table(dry(capsys, tmp_path, '--config=configs/scaling.py'))
  assert len(rows) == 36
  first = rows[0]
  assert first['cell'] == 'dense-C5.0e+10-d12L2' and first['steps'] == '1796'
  assert (first['N'], first['D']) == ('6.07k', '920k')
