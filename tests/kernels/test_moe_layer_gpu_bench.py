"""The benchmark of the layer on a GPU still runs, at a toy size."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.expert_ffn.api import expert_ffn

# The interpreter's program is nobody's: only its results count.
pytestmark = pytest.mark.usefixtures('quick_compilation')
FOLDER = pathlib.Path(__file__).parents[2] / 'experiments/2026_11_moe_layer_gpu'


def _module(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def bench():
  return _module('bench')


def test_a_toy_size_passes_its_gate_and_prints_a_table(
  bench, monkeypatch, capsys
):
  monkeypatch.setattr(bench, 'SAMPLES', 1)
  assert bench.main(['--smoke']) == 0
  text = capsys.readouterr().out
  for side in ('fused', 'products'):
    assert f'| toy | 24, 8, 12, 4, 2 | {side} |' in text
  assert 'commit ' in text and 'fused, bfloat16: largest' in text


def test_a_wrong_result_is_not_measured(bench, monkeypatch, capsys):
  monkeypatch.setattr(bench, 'difference', lambda *_: float('nan'))
  assert bench.main(['--smoke']) == 1
  assert '|' not in capsys.readouterr().out


def test_all_of_the_published_shapes_are_timed(bench):
  assert len(bench.SHAPES) == 7
  # 6TKnd: sizes that are fine-grained alike cost alike.
  work = {
    name: t * d * n * k for name, ((t, d, n, _, k), _) in bench.SHAPES.items()
  }
  assert work['7B'] == work['7B half as many'] == work['7B coarse']


def test_the_torch_side_computes_the_same_layer(bench):
  torch = pytest.importorskip('torch')
  side = _module('torch_side')
  x, matrices, ids, weights, _ = bench.inputs((24, 16, 16, 4, 2), jnp.float32)
  args = [torch.tensor(np.asarray(a)) for a in (x, *matrices, ids, weights)]
  args[4] = args[4].long()
  want = expert_ffn(x, *matrices, ids, weights, activation=jax.nn.silu)
  np.testing.assert_allclose(side.layer(*args), want, atol=1e-5)
