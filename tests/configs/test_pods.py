"""Pod recipes have as many parameters as the models that they are named for."""

import pytest

from configs.pods import deepseek_v3, kimi_linear, mixtral_8x22b
from moejax import accounting
from moejax.build import build

# In billions, as on the models' pages; DeepSeek-V3 without the 14B of the layer
# that predicts a second token.
PUBLISHED = {
  deepseek_v3: (671.0, 37.6),
  kimi_linear: (49.1, 3.5),
  mixtral_8x22b: (140.6, 39.2),
}


def name_of(recipe):
  return recipe.__name__.split('.')[-1]


@pytest.mark.parametrize('recipe', PUBLISHED, ids=name_of)
def test_parameters_are_as_many_as_published(recipe):
  model = build(recipe.get_config().model, 'config.model')
  rows = accounting.parameter_rows(model)
  total, active = PUBLISHED[recipe]
  assert round(sum(row.count for row in rows) / 1e9, 1) == total
  assert round(sum(row.active for row in rows) / 1e9, 1) == active
