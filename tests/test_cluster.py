"""Sweeps over the nodes of a Ray cluster."""

import importlib.util
import json
import threading
import time

import ml_collections
import pytest

from moejax import command_line, sweep
from moejax.sweep import cluster, hyper

# A cell waits for `release` in the folder above, but only the first time.
TRAIN = """
import pathlib, time

def run(config, workdir):
  folder = pathlib.Path(workdir)
  with open(folder / 'calls', 'a') as file:
    file.write('called\\n')
  if len((folder / 'calls').read_text().splitlines()) == 1:
    while not (folder.parent / 'release').exists():
      time.sleep(0.1)
  return {'loss': config.width / 10}
"""


def times_called(folder):
  path = folder / 'calls'
  return path.read_text().count('called') if path.exists() else 0


def test_without_ray_it_says_what_to_install(monkeypatch):
  find = importlib.util.find_spec

  def missing(name, *args):
    return None if name == 'ray' else find(name, *args)

  monkeypatch.setattr(importlib.util, 'find_spec', missing)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[ray\]'"):
    command_line.parse(['--config=configs/scaling.py', '--launcher=ray'])


def test_a_single_run_is_no_sweep():
  with pytest.raises(ValueError, match='has no get_hyper'):
    command_line.parse(['--config=configs/tiny.py', '--launcher=ray'])


@pytest.mark.parametrize(
  'have,taken',
  [
    ([{'CPU': 2.0}], {'num_cpus': 1}),
    ([{'CPU': 2.0}, {'CPU': 8.0, 'GPU': 2.0}], {'num_cpus': 1, 'num_gpus': 1}),
    (
      [{'CPU': 9.0, 'TPU': 4.0}, {'CPU': 1.0}],
      {'num_cpus': 1, 'resources': {'TPU': 4.0}},
    ),
  ],
)
def test_a_cell_takes_an_accelerator_where_nodes_have_them(have, taken):
  nodes = [{'Alive': True, 'Resources': resources} for resources in have]
  dead = {'Alive': False, 'Resources': {'GPU': 8.0, 'TPU': 1.0}}
  assert cluster.needs([*nodes, dead]) == taken


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # Ray's own
def test_a_sweep_that_loses_a_node_is_complete(tmp_path, monkeypatch):
  pytest.importorskip('ray', reason="needs ray: pip install -e '.[ray]'")
  from ray.cluster_utils import Cluster

  modules = tmp_path / 'modules'
  modules.mkdir()
  (modules / 'waiting_train.py').write_text(TRAIN)
  monkeypatch.syspath_prepend(modules)
  base = ml_collections.ConfigDict({'width': 1})
  cells = hyper.cells(hyper.sweep('width', range(4)))
  nodes = Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
  nodes.add_node(num_cpus=1)
  lost = nodes.add_node(num_cpus=1)
  nodes.wait_for_nodes()
  monkeypatch.setenv('RAY_ADDRESS', nodes.address)
  root, lines = tmp_path / 'sweep' / 'cells', []

  def lose_a_node():
    while len(list(root.glob('*/calls'))) < 2:
      time.sleep(0.1)
    nodes.remove_node(lost, allow_graceful=False)
    time.sleep(5)  # until its worker has ended, too
    (root / 'release').touch()

  thread = threading.Thread(target=lose_a_node, daemon=True)
  thread.start()
  try:
    rows = sweep.run(
      cells,
      base,
      tmp_path / 'sweep',
      'waiting_train.run',
      jobs=2,
      log=lines.append,
      launcher='ray',
    )
    thread.join()
  finally:
    nodes.shutdown()
  assert [row['status'] for row in rows] == ['ok'] * 4
  assert [row['loss'] for row in rows] == [0.0, 0.1, 0.2, 0.3]
  for cell in cells:
    result = json.loads((root / cell.name / 'result.json').read_text())
    assert result['name'] == cell.name
  # The lines are those of the local pool, and one cell was begun twice.
  ended = [line for line in lines if line.startswith('[')]
  assert len(ended) == 4 and ended[-1].startswith('[4/4]')
  calls = [times_called(root / cell.name) for cell in cells]
  assert sorted(calls) == [1, 1, 1, 2]
