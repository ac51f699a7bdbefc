"""A run that was cut ends bit for bit as one that was not."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import common
from moejax import config_io, evaluate, train
from moejax.checkpoint import Checkpoints
from moejax.train import Run

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, CUT = 6, 3
TIMED = {'tokens_per_s', 'flops_per_s', 'mfu'}
# Stops as `kill` would, in the middle of a step.
RECIPE = """
import os, pathlib, signal
import jax
from moejax import config_io, train

jax.config.update('jax_num_cpu_devices', 8)
jax.device_count = lambda: 1
seen, check = [], train.check_tokens

def check_tokens(*args):
  seen.append(check(*args))
  if len(seen) == {cut}:
    os.kill(os.getpid(), signal.SIGTERM)

train.check_tokens = check_tokens

def get_config(arg=None):
  text = pathlib.Path(__file__).with_name('config.json').read_text()
  return config_io.from_json(text)
"""


@pytest.fixture(scope='module')
def config(small, text):
  router = common.node(
    'routers.Router',
    score=common.node('routers.scores.Linear', num_experts=4),
    k=2,
    select=common.node('routers.select.top_k'),
    weigh=common.node('routers.weigh.sigmoid'),
    selection_bias=True,
  )
  block = small.sparse(router=router)
  c = small.config(model=small.model({'sparse': block}, vocab=257), data=text)
  c.train.steps = STEPS
  c.train.batch_size = 4
  c.train.bias_update = common.node('balance.bias_update', rate=0.01)
  c.log.every_steps = 2
  c.checkpoint.every_steps = 5
  c.checkpoint.keep = None
  return c


@pytest.fixture(scope='module', autouse=True)
def device():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, 'device_count', lambda: 1)
    yield patch


@pytest.fixture(scope='module')
def straight(config, tmp_path_factory):
  folder = tmp_path_factory.mktemp('straight')
  return folder, train.run(config, str(folder))


@pytest.fixture(scope='module')
def cut(config, tmp_path_factory):
  """The folder of a run that another process ended at step CUT by SIGTERM."""
  folder = tmp_path_factory.mktemp('cut')
  (folder / 'config.json').write_text(config_io.to_json(config))
  recipe = folder / 'recipe.py'
  recipe.write_text(RECIPE.format(cut=CUT))
  command = [sys.executable, '-m', 'moejax.main', f'--config={recipe}']
  done = subprocess.run(
    [*command, f'--workdir={folder / "run"}'],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 143, done.stderr
  assert f'stopped at step {CUT} of {STEPS}' in done.stdout
  return folder / 'run'


@pytest.fixture(scope='module')
def again(config, cut):
  """Goes on in a copy of the cut folder, with one compiled step for all."""
  made = []

  def go_on(folder):
    shutil.copytree(cut, folder, dirs_exist_ok=True)
    if not made:
      made.append(Run(config, folder))
    run = made[0]
    run.folder, run.data = folder, run.parts.batches('train', epochs=None)
    return run.go()

  return go_on


def leaves(config, folder):
  """{path: array} of the newest checkpoint."""
  run = evaluate.Parts(config)
  with Checkpoints(folder / 'checkpoints') as checkpoints:
    state, step = checkpoints.restore(run.abstract_state)
  assert step == STEPS
  flat = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in flat}


def rows(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in TIMED}
    for line in lines
  ]


def position(folder):
  found = folder / 'checkpoints' / str(STEPS) / 'data'
  return [path.read_text() for path in sorted(found.glob('process_*'))]


def different(a, b):
  assert a.keys() == b.keys()
  return {k for k in a if a[k].tobytes() != b[k].tobytes()}


@pytest.fixture(scope='module')
def resumed(again, tmp_path_factory):
  folder = tmp_path_factory.mktemp('resumed')
  return folder, again(folder)


def test_a_run_that_goes_on_ends_bit_for_bit_the_same(
  config, straight, resumed
):
  want, got = (leaves(config, folder) for folder, _ in (straight, resumed))
  assert any('counts' in path for path in want)  # balance is compared
  assert any('.mu' in path for path in want)  # and so are the moments
  assert different(want, got) == set()


def test_its_log_its_data_and_its_result_are_the_same(straight, resumed):
  assert rows(straight[0]) == rows(resumed[0])
  assert [row['step'] for row in rows(straight[0])] == [1, 2, 4, 6]
  assert position(straight[0]) == position(resumed[0]) != []
  for name in ('loss', 'loss_train', 'tokens', 'train_flops', 'data_digest'):
    assert straight[1][name] == resumed[1][name]


def zeroed(state, found):
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf * 0 if found in jax.tree_util.keystr(path) else leaf
    ),
    state,
  )


@pytest.mark.parametrize('lost', ['.mu', '.nu', '.count', "['bias']", 'data'])
def test_the_comparison_sees_what_a_checkpoint_loses(
  config, straight, again, lost, tmp_path, monkeypatch
):
  restore = Checkpoints.restore

  def forgetful(self, abstract, data=None, step=None):
    state, step = restore(self, abstract, None if lost == 'data' else data)
    if data is None or lost == 'data':
      return state, step
    changed = zeroed(state, lost)
    return changed, step

  monkeypatch.setattr(Checkpoints, 'restore', forgetful)
  again(tmp_path)
  monkeypatch.undo()
  assert different(leaves(config, straight[0]), leaves(config, tmp_path))


@pytest.mark.slow
def test_another_mesh_goes_on_within_rounding(
  config, straight, cut, device, tmp_path
):
  shutil.copytree(cut, tmp_path, dirs_exist_ok=True)
  other = config.copy_and_resolve_references()
  other.mesh = dict(data=2, expert=2)
  device.setattr(jax, 'device_count', lambda: 4)
  Run(other, tmp_path).go()
  device.setattr(jax, 'device_count', lambda: 1)
  want, got = leaves(config, straight[0]), leaves(config, tmp_path)
  for path, value in want.items():
    scale = np.abs(value).max() if value.size else 0
    np.testing.assert_allclose(
      got[path], value, rtol=1e-5, atol=1e-5 * scale, err_msg=path
    )


def test_a_finished_run_is_not_trained_again(config, straight, tmp_path):
  shutil.copytree(straight[0], tmp_path, dirs_exist_ok=True)
  before = rows(tmp_path)
  result = train.run(config, str(tmp_path))
  assert result['loss'] == straight[1]['loss']
  assert rows(tmp_path) == before


@pytest.mark.slow
def test_updates_by_rows_go_on_bit_for_bit(small, config, tmp_path):
  """Moments of tables too, which only the steps that read a row move."""
  table = common.table(64, dim=6, std=0.3)
  node = common.node(
    'memory.Tucker',
    keys=8,
    k=3,
    head_dim=8,
    values=table,
    pre_values=table,
  )
  block = common.block(common.attention(2, 1), node)
  config = config.copy_and_resolve_references()
  config.model = small.model({'block': block}, vocab=257).to_dict()
  config.losses, config.train.bias_update = {}, None
  config.optim.groups = (('values/rows$', {'rows': True}),)
  config.checkpoint.every_steps = CUT
  straight, cut = tmp_path / 'straight', tmp_path / 'cut'
  run = Run(config, straight)
  start = jax.tree.leaves(run.parts.new_state().params)
  run.go()
  shutil.copytree(straight, cut)
  shutil.rmtree(cut / 'checkpoints' / str(STEPS))
  Run(config, cut).go()
  want, got = leaves(config, straight), leaves(config, cut)
  tables = [path for path in want if "['values']" in path]
  assert len(tables) == 3 and all(want[path].any() for path in tables)
  assert any('mu' in path for path in tables)
  assert different(want, got) == set()
  assert rows(straight) == rows(cut)
  assert start
