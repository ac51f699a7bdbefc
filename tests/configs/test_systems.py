"""Commands of recipes for many devices run on the eight of the tests."""

import json
import re

import numpy as np
import pytest

from moejax import main
from moejax.recipes import load

pytestmark = [
  pytest.mark.slow,
  pytest.mark.usefixtures('quick_compilation'),
]
STEPS = 3


def losses(folder, config, *words):
  """The losses of each step of a command."""
  workdir = folder / re.sub(r'\W', '_', config)
  flags = [
    f'--config.train.steps={STEPS}',
    '--config.train.batch_size=8',
    '--config.log.every_steps=1',
    '--config.log.tensorboard=false',
  ]
  with pytest.raises(SystemExit) as stopped:
    main.main(
      ['moejax', f'--config={config}', f'--workdir={workdir}', *flags, *words]
    )
  assert stopped.value.code == 0
  result = json.loads((workdir / 'result.json').read_text())
  assert result['steps'] == STEPS and result['skipped_steps'] == 0
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [r['loss'] for r in map(json.loads, lines) if 'loss' in r]
  assert len(found) >= STEPS and np.isfinite(found).all()
  return found


@pytest.mark.parametrize(
  'name,same',
  [
    ('adaptive', True),
    ('elastic', None),
    ('folding', True),
    ('hashed', False),
    ('node_limited', False),
    ('placement', None),
  ],
)
def test_the_command_of_a_recipe_runs(name, same, tmp_path):
  """And its other form, whose losses are the same, or are not."""
  path = f'configs/papers/systems/{name}.py'
  doc = load(path).__doc__
  command = doc.partition('Command:')[2].partition('Expect:')[0]
  meshes = re.findall(r'--config\.mesh\.\w+=\d+', command)
  assert meshes or name == 'placement'
  found = losses(tmp_path, f'{path}:smoke', *meshes)
  forms = re.findall(r' :(\w+)', command)
  assert len(forms) == (same is not None)
  for form in forms:
    other = losses(tmp_path, f'{path}:smoke,{form}', *meshes)
    assert np.allclose(found, other, rtol=1e-5) == same


def test_stages_on_the_command_line_have_the_losses_of_one(tmp_path):
  # The balance of loads alone is one of micro-batches, not of the batch.
  flags = ['--config.losses.load=0', '--config.mesh.data=-1']
  found = losses(tmp_path, 'configs/moe.py:smoke,pipeline', *flags)
  want = losses(tmp_path, 'configs/moe.py:smoke', *flags)
  np.testing.assert_allclose(found, want, rtol=1e-5)
