"""The benchmark of the layer on a GPU still runs, at a toy size."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_torch_side_computes_the_same_layer(bench):
  torch = pytest.importorskip('torch')
  side = _module('torch_side')
  x, matrices, ids, weights, dy = bench.inputs((24, 16, 16, 4, 2), jnp.float32)
  want = bench.definition(x, matrices, ids, weights, dy)
  arrays = x, *matrices, weights, dy
  *wanted, dy = (torch.tensor(np.asarray(a)) for a in arrays)
  x, gate, up, down, weights = (a.requires_grad_() for a in wanted)
  ids = torch.tensor(np.asarray(ids)).long()
  for layer in (side.layer, side.definition):
    y = layer(x, torch.cat([gate, up], 2), down, ids, weights)
    got = y.detach(), *torch.autograd.grad(y, wanted, dy)
    for a, b in zip(got, jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.slow
def test_the_scattering_side_computes_the_same_layer(monkeypatch):
  monkeypatch.setenv('TRITON_INTERPRET', '1')
  torch = pytest.importorskip('torch')
  pytest.importorskip('triton')
  side, scatter = _module('torch_side'), _module('scatter_side')
  for shape in ((24, 16, 16, 4, 2), (70, 20, 24, 7, 3), (1, 16, 5, 40, 2)):
    error = side.difference(scatter.layer, shape, 'cpu', torch.float32)
    assert error < 1e-5
