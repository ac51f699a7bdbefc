"""Processes that run one program: start, shards, and who is missing."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import types

import numpy as np
import pytest

from moejax import command_line, processes, sharding

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUN = [
  *('--config=configs/tiny.py:smoke', '--config.train.seq_len=32'),
  '--config.model.width=32',
  *('--config.log.every_steps=1', '--config.checkpoint.every_steps=2'),
]
FOUR = ['--config.train.steps=4']
HEADS = [
  '--config.mesh.tensor=4',
  '--config.mesh.data=1',
  '--config.model.vocab=260',
  *(f'--config.model.blocks.{b}.mixer.kv_heads=4' for b in ('dense', 'sparse')),
]


@pytest.mark.parametrize(
  'words,said',
  [
    (
      ['--coordinator=a:1'],
      'without --processes and --process',
    ),
    (['--coordinator=a', '--processes=2', '--process=0'], 'no HOST:PORT'),
    (['--coordinator=a:1', '--processes=2', '--process=2'], 'from 0 to one'),
    (['--distributed=auto', '--process=1'], 'leave out the other words'),
    (['--process_timeout=5'], 'is for several processes'),
  ],
)
def test_words_that_do_not_belong_together_are_refused(words, said):
  with pytest.raises(ValueError, match=said):
    command_line.parse(['--config=configs/tiny.py', *words])


def test_a_sweep_is_run_by_one_process():
  with pytest.raises(ValueError, match='a sweep is run by one process'):
    command_line.parse(['--config=configs/scaling.py', '--distributed=auto'])


def test_a_command_tells_who_takes_part():
  words = ['--coordinator=a:1', '--processes=2', '--process=1']
  parsed = command_line.parse(['--config=configs/tiny.py', *words])
  assert parsed.processes == processes.Processes('a:1', 2, 1, 300)
  assert command_line.parse(['--config=configs/tiny.py']).processes is None


def holding(*bounds):
  """A sharding by which the devices of this process hold these rows."""
  places = {i: (slice(*b), slice(None)) for i, b in enumerate(bounds)}
  return types.SimpleNamespace(
    addressable_devices_indices_map=lambda shape: places
  )


def test_a_process_reads_the_rows_of_its_devices():
  assert sharding.row_shard(holding((4, 6), (6, 8)), 8) == (1, 2)
  # Heads are cut, not rows: every process reads all.
  assert sharding.row_shard(holding((None,), (None,)), 8) == (0, 1)
  for bounds in (((0, 2), (4, 6)), ((2, 4), (4, 6))):
    with pytest.raises(ValueError, match='no equal share of neighbouring ones'):
      sharding.row_shard(holding(*bounds), 8)


def test_who_says_nothing_new_is_silent_after_the_limit():
  heard = processes.Heard(3)
  assert heard.silent({0: '0', 1: '0'}, 0.0, 10) == []
  assert heard.silent({0: '1', 1: '0', 2: '0'}, 9.0, 10) == []
  assert heard.silent({0: '2', 1: '0', 2: '1'}, 11.0, 10) == [1]


def start(index, port, words, devices=2):
  env = os.environ | {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
  }
  together = []
  if port is not None:
    together = [f'--coordinator=localhost:{port}', '--processes=2']
    together += [f'--process={index}']
  return subprocess.Popen(
    [sys.executable, '-m', 'moejax.main', *RUN, *words, *together],
    cwd=ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ended(started):
  """(exit code, output, errors) of each, in time or not at all."""
  try:
    said = [process.communicate(timeout=400) for process in started]
  finally:
    for process in started:
      process.kill()
  return [
    (p.returncode, *texts) for p, texts in zip(started, said, strict=True)
  ]


def free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def losses(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['loss'] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [[], HEADS], ids=['rows', 'heads'])
def test_two_processes_of_two_devices_train_like_one_of_four(mesh, tmp_path):
  (alone,) = ended(
    [start(0, None, [*mesh, *FOUR, f'--workdir={tmp_path}/one'], devices=4)]
  )
  assert alone[0] == 0, alone[2]
  port, words = free_port(), [*mesh, *FOUR, f'--workdir={tmp_path}/two']
  two = ended([start(i, port, words) for i in range(2)])
  assert [code for code, _, _ in two] == [0, 0], two[0][2] + two[1][2]
  want, got = losses(tmp_path / 'one'), losses(tmp_path / 'two')
  assert len(got) == 4
  np.testing.assert_allclose(got, want, rtol=1e-5)
  # Process 0 alone prints, and writes the result.
  assert 'step 4/4' in two[0][1] and 'step' not in two[1][1]
  result = json.loads((tmp_path / 'two' / 'result.json').read_text())
  assert result['environment']['process_count'] == 2
  assert (tmp_path / 'two' / 'checkpoints' / '4').is_dir()


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, 1])
def test_a_missing_process_is_told_in_one_line_in_time(index, tmp_path):
  words = [f'--workdir={tmp_path}', '--process_timeout=5']
  alone = start(index, free_port(), words)
  try:
    _, errors = alone.communicate(timeout=60)
  finally:
    alone.kill()
  assert alone.returncode == processes.FAILED
  (line,) = errors.splitlines()
  assert line.startswith(f'error: process {index} of 2 waited 5 s')


@pytest.mark.slow
def test_a_process_that_stops_answering_is_told_in_one_line(tmp_path):
  port = free_port()
  words = ['--config.train.steps=100000', f'--workdir={tmp_path}']
  two = [start(i, port, [*words, '--process_timeout=15']) for i in range(2)]
  try:
    for line in two[0].stdout:
      if 'step 3/' in line:
        break
    two[1].send_signal(signal.SIGSTOP)
    _, errors = two[0].communicate(timeout=90)
  finally:
    for process in two:
      process.kill()
      process.communicate()
  assert two[0].returncode == processes.FAILED
  lines = [line for line in errors.splitlines() if line.startswith('error')]
  assert len(lines) == 1 and 'process 1 has not answered for 15 s' in lines[0]


@pytest.mark.slow
def test_wrong_input_ends_all_without_waiting(tmp_path):
  port = free_port()
  words = ['--config.train.batch_size=7', f'--workdir={tmp_path}']
  for code, _, errors in ended([start(i, port, words) for i in range(2)]):
    lines = [line for line in errors.splitlines() if line.startswith('error')]
    assert code == processes.WRONG_INPUT
    assert len(lines) == 1 and 'config.train.batch_size=7' in lines[0]


@pytest.mark.slow
def test_sigterm_to_one_saves_and_ends_all(tmp_path):
  port = free_port()
  words = ['--config.train.steps=100000', f'--workdir={tmp_path}']
  two = [start(i, port, words) for i in range(2)]
  try:
    for line in two[0].stdout:
      if 'step 3/' in line:
        break
    two[1].send_signal(signal.SIGTERM)
  except BaseException:
    for process in two:
      process.kill()
    raise
  first, second = ended(two)
  assert [first[0], second[0]] == [processes.TERMINATED] * 2, first[2]
  steps = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir()]
  assert f'stopped at step {max(steps)} ' in first[1]
