"""Logs, progress lines, the parameter table and facts about the machine."""

import io
import json
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich import console as rich_console
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from moejax import metrics
from moejax.metrics import provenance
from moejax.sweep import worker as sweep_worker


def _lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  return [
    json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()
  ]


def _events(workdir):
  """(step, tag, value) of every TensorBoard scalar that is still valid.

  Read from the record format itself: length, its checksum, data, its checksum.
  """
  found = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      assert int.from_bytes(data[8:12], 'little') == masked_crc32c(data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      if event.HasField('session_log'):
        found = [row for row in found if row[0] < event.step]
      found += [
        (event.step, v.tag, v.simple_value) for v in event.summary.value
      ]
  return found


def test_each_line_is_strict_json_with_the_values_as_given(tmp_path):
  with metrics.Writer(tmp_path, tensorboard=False) as writer:
    writer.write(
      jnp.int32(3),
      {
        'loss': jnp.float32(0.5),
        'z': np.float64('nan'),
        'layers': [1.0, float('inf'), -jnp.inf],
        'half': jnp.array([0.5, 2.0], jnp.bfloat16),
        'mfu': None,
        'tokens': np.int64(7),
      },
    )
  assert _lines(tmp_path) == [
    {
      'step': 3,
      'loss': 0.5,
      'z': 'nan',
      'layers': [1.0, 'inf', '-inf'],
      'half': [0.5, 2.0],
      'mfu': None,
      'tokens': 7,
    }
  ]
  assert not (tmp_path / 'tensorboard').exists()


def test_a_line_can_be_read_as_soon_as_it_is_written(tmp_path):
  writer = metrics.Writer(tmp_path, tensorboard=False)
  writer.write(1, {'loss': 1.0})
  assert _lines(tmp_path) == [{'step': 1, 'loss': 1.0}]
  writer.close()


def test_tensorboard_gets_a_tag_for_each_layer_and_skips_non_finite(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(2, {'loss': 0.5, 'bad': float('nan'), 'moe/load': [1.0, 2.5]})
  assert _events(tmp_path) == [
    (2, 'loss', 0.5),
    (2, 'moe/load/layer_00', 1.0),
    (2, 'moe/load/layer_01', 2.5),
  ]


@pytest.mark.parametrize(
  ('scalars', 'message'),
  [
    ({'a': 'text'}, "a='text' is text"),
    ({'a': [[1.0]]}, 'one number per layer'),
    ({'step': 1}, "the line's own key"),
    ({'a': {1}}, 'a is a set'),
  ],
)
def test_what_is_not_a_scalar_is_refused(tmp_path, scalars, message):
  with (
    metrics.Writer(tmp_path, tensorboard=False) as writer,
    pytest.raises(ValueError, match=message),
  ):
    writer.write(0, scalars)


def _train(writer, steps):
  for step in steps:
    writer.write(step, {'loss': 1 / step, 'load': [step, -step]})


@pytest.mark.parametrize('cut', ['', '{"step": 7, "lo'])
def test_a_resumed_log_is_that_of_an_uninterrupted_run(tmp_path, cut):
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  with metrics.Writer(whole) as writer:
    _train(writer, range(1, 10))
  with metrics.Writer(resumed) as writer:
    _train(writer, range(1, 7))
  with open(resumed / 'metrics.jsonl', 'a') as file:
    file.write(cut)
  with metrics.Writer(resumed) as writer:
    writer.rewind(4)
    _train(writer, range(5, 10))
  texts = [(path / 'metrics.jsonl').read_bytes() for path in (whole, resumed)]
  assert texts[0] == texts[1]
  assert _events(whole) == _events(resumed)


def test_rewind_in_an_open_log_and_before_the_first_step(tmp_path):
  with metrics.Writer(tmp_path, tensorboard=False) as writer:
    writer.rewind(3)  # nothing is there yet
    _train(writer, range(1, 4))
    writer.rewind(1)
    _train(writer, [2])
    assert [line['step'] for line in _lines(tmp_path)] == [1, 2]
    writer.rewind(-1)
    assert _lines(tmp_path) == []


def test_a_half_written_line_is_dropped_without_a_rewind_too(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"st')
  with metrics.Writer(tmp_path, tensorboard=False) as writer:
    writer.write(2, {})
  assert _lines(tmp_path) == [{'step': 1}, {'step': 2}]


def test_rewind_refuses_a_log_that_is_broken_in_the_middle(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\nx\n{"step": 2}\n')
  with pytest.raises(ValueError, match='line 2 is not a line of metrics'):
    metrics.Writer(tmp_path).rewind(2)


def test_a_url_as_work_folder_is_refused():
  with pytest.raises(ValueError, match='mounted folder'):
    metrics.Writer('gs://bucket/run')


def test_processes_other_than_0_write_and_say_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  stream = io.StringIO()
  with metrics.Writer(tmp_path / 'run') as writer:
    writer.write(1, {'loss': 1.0})
    writer.rewind(0)
  with metrics.Progress(10, stream=stream) as progress:
    progress.update(1, loss=2.0)
  assert not (tmp_path / 'run').exists() and stream.getvalue() == ''


def _clock(monkeypatch, *times_s):
  times = iter(times_s)
  fake = types.SimpleNamespace(monotonic=lambda: next(times))
  monkeypatch.setattr('moejax.metrics.progress.time', fake)


def test_plain_progress_lines_leave_compilation_out_of_the_time(monkeypatch):
  _clock(monkeypatch, 0.0, 1.0, 60.0, 70.0, 80.0)
  stream = io.StringIO()
  with metrics.Progress(1000, start_step=100, stream=stream) as progress:
    progress.update(100)
    progress.update(200, loss=jnp.float32(3.21), tokens_per_s=12345.4)
    progress.update(300, loss=3.1, tokens_per_s=20000)
    progress.update(400)
  assert stream.getvalue().splitlines() == [
    'step 100/1000',
    'step 200/1000  loss 3.21  12,345 tokens/s  8m00s left',
    'step 300/1000  loss 3.1  20,000 tokens/s  1m10s left',
    'step 400/1000  1m00s left',
  ]


def test_a_terminal_gets_a_bar(monkeypatch):
  stream = io.StringIO()
  real = rich_console.Console
  monkeypatch.setattr(
    rich_console,
    'Console',
    lambda file: real(file=file, force_terminal=True, width=100),
  )
  with metrics.Progress(10, stream=stream) as progress:
    progress.update(5, loss=1.5)
  text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', stream.getvalue())
  assert 'step 5/10  loss 1.5' in text and '━' in text


ROWS = [
  ('embed/table', ('vocab', 'embed'), (1000, 8), jnp.bfloat16, 8000, 8000),
  ('moe/up', ('expert', 'embed', 'mlp'), (16, 8, 32), 'float32', 4096, 512),
  ('scale', ('embed',), (8,), np.float32, 8, 8),
  ('head', ('embed', 'vocab'), (8, 1000), 'float32', 8000, 8000),
  ('rate', (), (), 'float32', 1, 1),
]


def test_totals_are_given_with_and_without_embeddings():
  assert metrics.parameter_totals(ROWS) == {
    'total': 20105,
    'active': 16521,
    'total_without_embeddings': 4105,
    'active_without_embeddings': 521,
  }


def test_the_parameter_table_is_aligned_and_complete():
  table = metrics.parameter_table(ROWS)
  lines = table.splitlines()
  assert lines[2].split() == (
    ['embed/table', 'vocab,', 'embed', '1,000', 'x', '8', 'bfloat16']
    + ['8,000', '8,000']
  )
  assert lines[-2].split() == ['total', '20,105', '16,521']
  assert lines[-1].split()[-2:] == ['4,105', '521']
  assert len({len(line) for line in lines}) == 1  # numbers end in one column


@pytest.mark.parametrize(
  ('kind', 'flops_per_s'),
  [
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('TPU7x', 1153.5e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989e12),
    ('NVIDIA H200 NVL', 835e12),
    ('NVIDIA B200', 2250e12),
  ],
)
def test_known_devices_have_their_published_peak(kind, flops_per_s):
  device = types.SimpleNamespace(device_kind=kind)
  assert metrics.device_peak_flops(device) == (flops_per_s, 'known')


def test_other_devices_are_measured_once_and_near_what_a_product_reaches():
  device = jax.devices('cpu')[0]
  first = metrics.device_peak_flops(device)
  assert first == metrics.device_peak_flops(device)
  assert first[1] == 'measured'
  # From one slow core without vector units to a large server.
  assert 1e8 < first[0] < 1e14


def _peak_of_a_child():
  code = 'from moejax import metrics; print(metrics.peak_memory_bytes())'
  child = subprocess.run(
    [sys.executable, '-c', code],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return int(re.search(r"'host': (\d+)", child.stdout)[1])


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_peak_memory_is_this_process_alone_and_can_start_anew():
  host = lambda: metrics.peak_memory_bytes()['host']  # noqa: E731
  size = 400 * 2**20
  sweep_worker._reset_peak_memory()
  start = host()
  block = np.ones(size, np.uint8)
  filled = host()
  assert filled - start == pytest.approx(size, rel=0.05)
  assert _peak_of_a_child() < filled - size / 2
  del block
  assert host() == pytest.approx(filled, rel=0.01)  # a peak does not fall
  sweep_worker._reset_peak_memory()
  assert filled - host() == pytest.approx(size, rel=0.05)
  assert metrics.peak_memory_bytes()['device'] is None


def test_environment_names_versions_and_hardware():
  found = metrics.environment()
  assert found['jax'] == jax.__version__
  assert found['device_count'] == jax.device_count()
  assert found['python'] == '.'.join(map(str, sys.version_info[:3]))
  assert found['cpu'] and found['cores'] >= found['cores_used'] >= 1
  json.dumps(found, allow_nan=False)


def _git(folder, *arguments):
  names = ('-c', 'user.name=a', '-c', 'user.email=a@example.com')
  return subprocess.run(
    ['git', '-C', str(folder), *names, *arguments],
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_says_if_it_was_changed(
  tmp_path,
):
  commit = provenance._commit
  package = tmp_path / 'package'
  package.mkdir()
  (package / 'code.py').write_text('1')
  assert commit(str(package)) is None
  commit.cache_clear()
  _git(tmp_path, 'init', '-q')
  # Inside a repository that does not track it, as an installed package may be.
  assert commit(str(package)) is None
  commit.cache_clear()
  _git(tmp_path, 'add', '.')
  _git(tmp_path, 'commit', '-q', '-m', 'first')
  head = _git(tmp_path, 'rev-parse', 'HEAD')
  assert re.fullmatch('[0-9a-f]{40}', head) and commit(str(package)) == head
  commit.cache_clear()
  (package / 'code.py').write_text('2')
  assert commit(str(package)) == f'{head}-dirty'
