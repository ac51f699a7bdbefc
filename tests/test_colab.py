"""Every notebook runs, and is committed without what it printed."""

import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))
each_notebook = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=lambda path: path.stem
)


def _code(path):
  notebook = nbformat.read(path, as_version=4)
  return notebook, [c for c in notebook.cells if c.cell_type == 'code']


@each_notebook
def test_a_notebook_is_committed_without_outputs(path):
  _, cells = _code(path)
  assert cells
  assert all(not c.outputs and c.execution_count is None for c in cells)


@each_notebook
def test_a_notebook_defines_nothing_of_its_own(path):
  _, cells = _code(path)
  for cell in cells:
    starts = [line.split(' ')[0] for line in cell.source.splitlines()]
    assert not {'def', 'class', '!pip', '%pip'} & set(starts)


@each_notebook
def test_a_notebook_runs_and_shows_its_pictures(path, monkeypatch):
  monkeypatch.setenv('STEPS', '3')
  # Its programs run a few times only.
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  notebook, cells = _code(path)
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={'metadata': {'path': str(ROOT)}}
  )
  client.execute()
  shown = [
    output
    for cell in cells
    for output in cell.outputs
    if 'image/png' in output.get('data', {})
  ]
  drawing = [cell for cell in cells if 'plt.show()' in cell.source]
  assert len(shown) == len(drawing) > 0
