"""The benchmark of the chunked kernels on a GPU still runs, at a toy size."""

import importlib.util
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / 'experiments/2026_11_chunked_gpu'


@pytest.fixture(scope='module')
def bench():
  spec = importlib.util.spec_from_file_location('bench', FOLDER / 'bench.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.slow
def test_a_toy_size_passes_its_gate_and_prints_a_table(
  bench, monkeypatch, capsys
):
  monkeypatch.setattr(bench, 'SAMPLES', 1)
  # One operation: each takes seconds to compile.
  monkeypatch.setattr(bench, 'OPERATIONS', {'simple_gla': ('head', False)})
  assert bench.main(['--smoke']) == 0
  text = capsys.readouterr().out
  assert '| simple_gla | toy: 1, 70, 1, 16 | ours | ' in text
  assert '| fla | not run: fla is not installed | |' in text
  assert 'simple_gla, float32: largest' in text and 'commit ' in text


def test_a_wrong_result_is_not_measured(bench, monkeypatch, capsys):
  monkeypatch.setattr(bench, 'difference', lambda *_: float('nan'))
  assert bench.main(['--smoke']) == 1
  assert '|' not in capsys.readouterr().out


def test_the_published_shapes_are_timed_and_counted(bench):
  sizes = {(s.B, s.T, s.H, s.K) for s in bench.PUBLISHED.values()}
  assert sizes == {
    *((1, 8192, 96, 128), (2, 16384, 16, 128)),
    (4, 4096, 64, 128),
  }
  shape = bench.PUBLISHED['one long']
  # With K = V = D: 6 D^2 + 8 C D + C^2 for each token of a head.
  want = 96 * 8192 * (6 * 128**2 + 8 * 64 * 128 + 64**2)
  assert bench.flops(shape, True) == want
