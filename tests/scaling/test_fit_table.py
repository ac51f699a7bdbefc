import json

import numpy as np
import pytest

from moejax import main
from moejax.scaling import fit_table, forms, table

THETA = dict(E=0.85, A=60.0, B=220.0, alpha=0.34, beta=0.31)


@pytest.fixture
def write(tmp_path):
  """Writes a table of 16 runs; columns may be replaced or left out."""

  def make(**changes):
    flops = np.repeat([1e13, 3e13, 1e14, 3e14], 4)
    N = np.tile(np.geomspace(5e4, 8e5, 4), 4) * (flops / 1e13) ** 0.5
    columns = {'run': [f'r{i}' for i in range(16)], 'params': N}
    columns['tokens'] = flops / (6 * N)
    noise = np.random.default_rng(0).standard_normal(16)
    known = {'N': N, 'D': columns['tokens']}
    columns['loss'] = forms.chinchilla(THETA, known) * np.exp(0.002 * noise)
    columns |= changes
    columns = {k: list(v) for k, v in columns.items() if v is not None}
    lines = [','.join(columns)]
    lines += [
      ','.join(map(str, row)) for row in zip(*columns.values(), strict=True)
    ]
    path = tmp_path / 'runs.csv'
    path.write_text('\n'.join(lines) + '\n')
    return path

  return make


def test_the_command_prints_the_law_and_stores_it(write, tmp_path, capsys):
  folder = tmp_path / 'out'
  words = [f'--data={write()}', '--form=chinchilla', f'--workdir={folder}']
  with pytest.raises(SystemExit) as ended:
    main.main(['moejax', '--mode=fit', *words])
  assert ended.value.code == 0
  text = capsys.readouterr().out
  assert '16 runs: N from params, D from tokens, value from loss' in text
  assert 'variable projection' in text and 'Huber' in text
  stored = json.loads((folder / 'fit.json').read_text())
  projected = stored['fits'][0]
  for name, value in THETA.items():
    low, high = projected['interval95'][name]
    assert low < projected['theta'][name] < high
    assert low / 1.5 < value < high * 1.5


def test_what_follows_from_size_and_tokens_needs_no_column(write, monkeypatch):
  monkeypatch.setattr(fit_table, 'DRAWS', 0)
  text = fit_table.run(write(), 'over_training')
  assert 'C from 6 N D' in text and 'M from D / N' in text


def test_rows_that_are_no_numbers_are_named_and_counted(write, monkeypatch):
  monkeypatch.setattr(fit_table, 'DRAWS', 0)
  loss = np.loadtxt(write(), delimiter=',', skiprows=1, usecols=3)
  text = [*map(str, loss)]
  text[3], text[5], text[7] = 'nan', '', '-1.0'
  found = fit_table.run(write(loss=text), 'chinchilla')
  assert '13 runs' in found and '3 rows excluded' in found
  assert 'r3: value=nan is not a positive number' in found
  assert 'r7: value=-1.0 is not a positive number' in found


def test_failed_runs_and_searches_of_rates_are_not_fitted(write, monkeypatch):
  monkeypatch.setattr(fit_table, 'DRAWS', 0)
  labels = {'status': ['ok'] * 16, 'labels.role': ['law'] * 16}
  labels['status'][2], labels['labels.role'][4] = 'failed', 'rates'
  found = fit_table.run(write(**labels), 'chinchilla')
  assert '14 runs' in found and '2 rows excluded' in found
  assert 'r2: status=failed' in found and 'r4: labels.role=rates' in found


def test_a_table_from_a_spreadsheet_keeps_the_name_of_its_first_column(write):
  loss = [float('nan')] + [2.0 + i for i in range(15)]
  path = write(loss=loss)
  path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
  found = table.read(path, forms.chinchilla)
  assert found.excluded == ('r0: value=nan is not a positive number',)


def test_cells_without_a_column_and_columns_of_one_name_are_refused(write):
  path = write()
  text = path.read_text()
  path.write_text(text.replace('r3,', 'r3,1,'))
  with pytest.raises(ValueError, match='row 4 has more cells than the 4'):
    fit_table.run(path, 'chinchilla')
  path.write_text(text.replace('params', 'loss'))
  with pytest.raises(ValueError, match="two columns 'loss'"):
    fit_table.run(path, 'chinchilla')


BAD = {
  'no law': (dict(form='chinchila'), {}, "did you mean 'chinchilla'"),
  'no file': (dict(data='none.csv'), {}, 'none.csv: No such file'),
  'no column': ({}, dict(loss=None), 'lacks value.*found run, params, tokens'),
  'named column': (dict(columns='N=size'), {}, "no column 'size' for N"),
  'no symbol': (dict(columns='Q=loss'), {}, 'this law has no Q'),
  'no pair': (dict(columns='N'), {}, "'N' is no pair"),
  'one size': ({}, dict(params=[1e6] * 16), 'N=1e.06 in all 16 usable rows'),
  'one loss': ({}, dict(loss=[2.0] * 16), 'the value is 2 in all 16'),
  'no number': ({}, dict(loss=['oops'] * 16), 'value=oops is not a pos'),
  'no loss': ({}, dict(loss=[-1] * 16), 'none of 16 rows can be used'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_fitted_is_refused(case, write):
  words, changes, message = BAD[case]
  words = dict(data=write(**changes), form='chinchilla') | words
  with pytest.raises(ValueError, match=message):
    fit_table.run(**words)


def test_fewer_runs_than_parameters_are_refused(write):
  few = [1.0, 2.0, 3.0, 4.0] + [float('nan')] * 12
  with pytest.raises(ValueError, match='4 runs cannot fit the 5 free'):
    fit_table.run(write(loss=few), 'chinchilla')


@pytest.mark.parametrize(
  'words,message',
  [
    (['--form=chinchilla', '--config=configs/tiny.py'], 'add --mode=fit'),
    (['--mode=fit', '--form=chinchilla'], 'needs --data'),
    (['--mode=fit', '--data=a.csv'], 'needs --form'),
    (
      ['--mode=fit', '--data=a.csv', '--form=a', '--config=b.py'],
      'leave out --config',
    ),
  ],
)
def test_words_that_do_not_go_together_are_told(words, message, capsys):
  with pytest.raises(SystemExit) as ended:
    main.main(['moejax', *words])
  assert ended.value.code == 2
  assert message in capsys.readouterr().err
