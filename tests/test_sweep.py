"""Sweeps: finished cells are kept, cut ones resumed, failed ones reported."""

import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import types

import ml_collections
import pytest
from rich import console as rich_console

from moejax import config_io, sweep
from moejax.sweep import hyper
from moejax.sweep import pool as sweep_pool
from moejax.sweep import status as sweep_status

# What a worker trains: it counts its calls, waits for a file where it is told
# to, and resumes from its own 'checkpoint'.
FAKE_TRAIN = """
import os, pathlib, signal, sys, time

def run(config, workdir):
  folder = pathlib.Path(workdir)
  with open(folder / 'calls', 'a') as file:
    file.write(f'{os.getpid()} {time.monotonic()}\\n')
  print('training', folder.name)
  if config.act == 'raise':
    raise RuntimeError('diverged at\\nstep 3')
  if config.act == 'die':
    print('last words', flush=True)
    os._exit(9)
  if config.act == 'kill':
    os.kill(os.getpid(), 9)
  if config.act == 'exit':
    sys.exit('stopped')
  if config.act == 'list':
    return [1]
  if config.act == 'wait' and not (folder / 'checkpoint').exists():
    if config.saves:
      def save(*arguments):
        time.sleep(0.3)
        (folder / 'checkpoint').write_text('step 6')
        raise RuntimeError('saved and stopped')
      signal.signal(signal.SIGTERM, save)
    (folder / 'checkpoint').write_text('step 5')
    time.sleep(600)
  return {
    'loss': config.width / 10,
    'bad': float('nan'),
    'status': 'mine',
    'resumed': (folder / 'checkpoint').exists(),
    'cpus': sorted(os.sched_getaffinity(0)),
    'jax': 'jax' in sys.modules,
    'betas': config.betas,
  }
"""

BASE = {
  'width': 1,
  'act': 'ok',
  'saves': False,
  'betas': (0.9, 0.95),
  'labels': {'cost': 1.0},
}
TRAIN = 'fake_train.run'


@pytest.fixture(autouse=True)
def fake_train(tmp_path, monkeypatch):
  modules = tmp_path / 'modules'
  modules.mkdir()
  (modules / 'fake_train.py').write_text(FAKE_TRAIN)
  monkeypatch.syspath_prepend(modules)
  return modules


def _run(workdir, *overrides, **options):
  lines = []
  rows = sweep.run(
    hyper.cells(overrides),
    ml_collections.ConfigDict(options.pop('base', BASE)),
    workdir,
    TRAIN,
    log=lines.append,
    **options,
  )
  return rows, lines


def _calls(workdir, name):
  path = pathlib.Path(workdir) / 'cells' / name / 'calls'
  return path.read_text().splitlines() if path.exists() else []


def test_failed_cells_are_reported_retried_and_stop_nothing(tmp_path):
  acts = ('raise', 'die', 'kill', 'exit', 'list', 'ok')
  cells = hyper.sweep('act', acts)
  rows, lines = _run(tmp_path, *cells)
  assert [row['status'] for row in rows] == ['failed'] * 5 + ['ok']
  errors = {row['name']: row.get('error') for row in rows}
  assert errors == {
    'act=raise': 'RuntimeError: diverged at step 3',
    'act=die': 'the process ended by itself with exit code 9',
    'act=kill': 'the process was killed by SIGKILL (often: out of memory)',
    'act=exit': 'SystemExit: stopped',
    'act=list': 'TypeError: fake_train.run returned a list; it must return '
    'a dict of results.',
    'act=ok': None,
  }
  folders = tmp_path / 'cells'
  assert 'Traceback' in (folders / 'act=raise' / 'error.txt').read_text()
  assert 'last words' in (folders / 'act=die' / 'error.txt').read_text()
  assert '5 of 6 cells failed; a rerun retries them:' in lines
  assert '  act=raise: RuntimeError: diverged at step 3' in lines

  # The cause is removed: that cell succeeds, the finished one is not rerun.
  module = pathlib.Path(sys.path[0]) / 'fake_train.py'
  module.write_text(FAKE_TRAIN.replace("== 'raise'", "== 'never'"))
  rows, _ = _run(tmp_path, *cells)
  assert [row['status'] for row in rows] == ['ok'] + ['failed'] * 4 + ['ok']
  assert not (folders / 'act=raise' / 'error.txt').exists()
  assert len(_calls(tmp_path, 'act=raise')) == 2
  assert len(_calls(tmp_path, 'act=ok')) == 1


def test_results_hold_what_train_returned_as_strict_json(tmp_path):
  rows, _ = _run(tmp_path, {'width': 3})
  (row,) = rows
  text = (tmp_path / 'cells' / 'width=3' / 'result.json').read_text()
  assert json.loads(text, parse_constant=pytest.fail) == row
  assert row['name'] == 'width=3' and row['status'] == 'ok'
  assert row['overrides'] == {'width': 3}
  assert row['loss'] == 0.3 and row['bad'] == 'nan'
  assert row['betas'] == [0.9, 0.95] and not row['jax']
  log = (tmp_path / 'cells' / 'width=3' / 'log.txt').read_text()
  assert log == 'training width=3\n'


def test_workers_share_cores_and_live_for_many_cells(tmp_path):
  rows, _ = _run(tmp_path, *hyper.sweep('width', range(1, 7)), jobs=2)
  pids = {_calls(tmp_path, row['name'])[0].split()[0] for row in rows}
  assert [row['loss'] for row in rows] == [w / 10 for w in range(1, 7)]
  assert len(pids) == 2
  shares = {tuple(row['cpus']) for row in rows}
  assert shares == {tuple(share) for share in sweep_pool.cpu_shares(2)}


def test_shares_of_cpus_are_disjoint_and_complete(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {3, 4, 5, 8, 9})
  assert sweep_pool.cpu_shares(1) == [None]
  assert sweep_pool.cpu_shares(2) == [[3, 4], [5, 8, 9]]
  assert sweep_pool.cpu_shares(5) == [[3], [4], [5], [8], [9]]
  assert sweep_pool.cpu_shares(6) == [[3], [4], [5], [8], [9], [3]]


def test_the_costliest_cells_start_first(tmp_path):
  cells = hyper.zipit(
    [hyper.sweep('width', (1, 2, 3)), hyper.sweep('labels.cost', (1, 9, 4))]
  )
  rows, _ = _run(tmp_path, *cells)
  starts = [float(_calls(tmp_path, r['name'])[0].split()[1]) for r in rows]
  assert [row['loss'] for row in rows] == [0.1, 0.2, 0.3]
  assert starts[1] < starts[2] < starts[0]


def test_a_folder_of_another_config_is_refused_before_anything_runs(tmp_path):
  _run(tmp_path, {'width': 2})
  with pytest.raises(ValueError) as caught:
    _run(
      tmp_path, {'width': 5}, {'width': 2}, base={**BASE, 'betas': (0.9, 0.99)}
    )
  message = str(caught.value)
  assert 'width=2 holds another config:\n  betas[1]: 0.95 -> 0.99' in message
  assert 'Use another workdir' in message
  assert not (tmp_path / 'cells' / 'width=5').exists()
  (tmp_path / 'cells' / 'width=2' / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='config.json cannot be read'):
    _run(tmp_path, {'width': 2})


def test_a_result_that_cannot_be_read_is_refused(tmp_path):
  _run(tmp_path, {'width': 2})
  (tmp_path / 'cells' / 'width=2' / 'result.json').write_text('')
  with pytest.raises(ValueError, match='delete it to run its cell again'):
    _run(tmp_path, {'width': 2})


@pytest.mark.parametrize(
  ('overrides', 'options', 'message'),
  [
    ([], {}, 'the sweep has no cells'),
    ([{}], {'jobs': 0}, 'use at least 1 worker'),
    ([{'wdith': 1}], {}, "cell 'wdith=1': .* Did you mean 'width'"),
    ([{}, {'width': 1}], {}, "'base' and 'width=1' have the same config"),
  ],
)
def test_mistakes_are_refused_at_once(tmp_path, overrides, options, message):
  with pytest.raises(ValueError, match=message):
    _run(tmp_path, *overrides, **options)


def test_a_train_function_that_cannot_be_found_is_refused(tmp_path):
  for train in ('run', 'no_such_package.train.run'):
    with pytest.raises(ValueError, match='names no module'):
      sweep.run(
        hyper.cells([{}]), ml_collections.ConfigDict(BASE), tmp_path, train
      )


PARENT = """
import sys
import ml_collections
from moejax import sweep
from moejax.sweep import hyper
def say(line):
  print(line, flush=True)
try:
  sweep.run(
    hyper.cells([{'width': 2}, {'act': 'wait'}, {'width': 3}]),
    ml_collections.ConfigDict(%r), sys.argv[1], 'fake_train.run', log=say)
except KeyboardInterrupt:
  sys.exit(143)
"""


def _start_and_wait_for_second_cell(workdir, base=BASE):
  paths = os.pathsep.join([*sys.path, os.getcwd()])
  parent = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(PARENT % base), str(workdir)],
    env={**os.environ, 'PYTHONPATH': paths},
    stdout=subprocess.PIPE,
    text=True,
  )
  _until((workdir / 'cells' / 'act=wait' / 'checkpoint').exists)
  worker = int(_calls(workdir, 'act=wait')[0].split()[0])
  return parent, worker


def _until(condition, limit_s=20):
  deadline_s = time.monotonic() + limit_s
  while not condition():
    assert time.monotonic() < deadline_s
    time.sleep(0.02)


def _gone(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return True
  # Nobody may be there to collect an orphan that has ended.
  status = pathlib.Path(f'/proc/{pid}/status')
  return not status.exists() or 'State:\tZ' in status.read_text()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_resumes_and_keeps_what_is_finished(tmp_path, number):
  parent, worker = _start_and_wait_for_second_cell(tmp_path)
  # Another sweep may not enter the folder meanwhile.
  cells = [{'width': 2}, {'act': 'wait'}, {'width': 3}]
  with pytest.raises(ValueError, match='another sweep is running there'):
    _run(tmp_path, *cells)
  parent.send_signal(number)
  output, _ = parent.communicate(timeout=20)
  if number == signal.SIGTERM:
    assert parent.returncode == 143
    assert 'Stopped with 1 of 3 cells run. Run the same command' in output
  _until(lambda: _gone(worker))
  assert not (tmp_path / 'cells' / 'act=wait' / 'error.txt').exists()

  rows, lines = _run(tmp_path, *cells)
  assert lines[0] == '1 of 3 cells have a result.'
  assert [row['status'] for row in rows] == ['ok'] * 3
  assert [row['resumed'] for row in rows] == [False, True, False]
  counts = [len(_calls(tmp_path, row['name'])) for row in rows]
  assert counts == [1, 2, 1]


def test_a_worker_that_dies_idle_is_replaced(tmp_path):
  folders = [tmp_path / name for name in 'ab']
  for folder in folders:
    folder.mkdir()
    config = config_io.to_json(BASE)
    (folder / 'config.json').write_text(config)
    (folder / 'cell.json').write_text('{"name": "x", "overrides": {}}')
  pool = sweep_pool.Pool(TRAIN, 1)
  try:
    for folder in folders:
      pool.start(folder)
      assert pool.wait(20) == [(0, {'status': 'ok'})]
      pid = int((folder / 'calls').read_text().split()[0])
      os.kill(pid, signal.SIGKILL)
      assert pool.wait(20) == []  # seen at once and not again
      assert pool.wait(0) == [] and _gone(pid)
  finally:
    pool.stop()


def test_a_terminal_gets_one_line_of_counts_and_the_failures(monkeypatch):
  stream = io.StringIO()
  real = rich_console.Console
  monkeypatch.setattr(
    rich_console,
    'Console',
    lambda: real(file=stream, force_terminal=True, width=100),
  )
  lines = []
  with sweep_status.Status([1.0, 3.0], lines.append) as status:
    status.finish({'name': 'a', 'status': 'ok'}, 1.0, 2.0)
    failed = {'name': 'b', 'status': 'failed', 'error': 'why'}
    status.finish(failed, 3.0, 61.0)
    status.refresh(0)
  assert '2/2 cells, 1 failed, 0 running, 0s left' in stream.getvalue()
  assert lines == ['[2/2] b failed: why (1m01s), 0s left']


@pytest.mark.parametrize(
  ('costs', 'left'), [([1.0, 3.0], '30s left'), ([1.0, None], '10s left')]
)
def test_time_left_weighs_cells_by_cost(monkeypatch, costs, left):
  times = iter([0.0, 10.0])
  fake = types.SimpleNamespace(monotonic=lambda: next(times))
  monkeypatch.setattr('moejax.sweep.status.time', fake)
  lines = []
  with sweep_status.Status(costs, lines.append) as status:
    status.finish({'name': 'a', 'status': 'ok'}, 1.0, 10.0)
  assert lines == [f'[1/2] a ok (10s), {left}']


def test_cells_that_are_stopped_may_save_and_have_not_failed(tmp_path):
  saves = {**BASE, 'saves': True}
  parent, worker = _start_and_wait_for_second_cell(tmp_path, saves)
  start_s = time.monotonic()
  parent.terminate()
  parent.communicate(timeout=20)
  # It waits for the save, but not for its whole grace of 30 s.
  assert 0.3 < time.monotonic() - start_s < 10
  _until(lambda: _gone(worker))
  folder = tmp_path / 'cells' / 'act=wait'
  assert (folder / 'checkpoint').read_text() == 'step 6'
  assert not (folder / 'error.txt').exists()


def test_csv_has_flat_columns_and_the_failed_rows(tmp_path):
  path = tmp_path / 'results.csv'
  sweep.write_csv(
    [
      {
        'name': 'a',
        'status': 'ok',
        'overrides': {'model.width': 2},
        'flops': {'total': 5, 'by': {'x': None}},
        'load': [1.0, 2.0],
      },
      {'name': 'b', 'status': 'failed', 'error': 'one, two'},
    ],
    path,
  )
  with open(path, newline='') as file:
    rows = list(csv.DictReader(file))
  assert rows[0] == {
    'name': 'a',
    'status': 'ok',
    'error': '',
    'overrides.model.width': '2',
    'flops.total': '5',
    'flops.by.x': '',
    'load': '[1.0, 2.0]',
  }
  assert rows[1]['error'] == 'one, two' and rows[1]['flops.total'] == ''
