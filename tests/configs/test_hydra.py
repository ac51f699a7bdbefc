"""The form of Hydra that has a memory of facts."""

import json

import numpy as np
import pytest

from configs.papers.mixers import hydra
from moejax import accounting, train
from moejax.build import build


def test_facts_stand_beside_the_experts_of_the_last_layer():
  model = build(hydra.get_config('facts,smoke').model, 'config.model')
  paths = [row.path for row in accounting.parameter_rows(model)]
  facts = [path for path in paths if 'facts' in path]
  assert any(path.endswith('values/rows') for path in facts)
  assert any('parts_experts' in path for path in paths)
  assert {path.split('/')[0] for path in facts} == {'after'}


@pytest.mark.slow
def test_its_loss_is_finite_and_falls(text, one_device, tmp_path):
  config = hydra.get_config('facts,smoke')
  config.data = text
  config.train.steps, config.log.every_steps = 24, 1
  train.run(config, str(tmp_path))
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  losses = np.array([json.loads(line)['loss'] for line in lines])
  assert len(losses) == 24 and np.isfinite(losses).all()
  # Of words that come again and again.
  assert losses[-4:].mean() < losses[:4].mean() - 1.0, losses
