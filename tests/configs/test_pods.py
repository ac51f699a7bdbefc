"""Pod recipes have as many parameters as the models that they are named for."""

import pytest

from configs.pods import (
  deepseek_v3,
  kimi_linear,
  mixtral_8x22b,
  ultramem_v2,
)
from moejax import accounting
from moejax.build import build

# In billions, as their authors give them; DeepSeek-V3 without the 14 of the
# layer that predicts a second token, Kimi Linear as its checkpoint has them.
PUBLISHED = {
  deepseek_v3: 671,
  kimi_linear: 49,
  mixtral_8x22b: 141,
  ultramem_v2: 120,
}


def name_of(recipe):
  return recipe.__name__.split('.')[-1]


@pytest.mark.parametrize('recipe', PUBLISHED, ids=name_of)
def test_parameters_are_as_many_as_published(recipe):
  model = build(recipe.get_config().model, 'config.model')
  rows = accounting.parameter_rows(model)
  assert round(sum(row.count for row in rows) / 1e9) == PUBLISHED[recipe]


def test_a_token_uses_as_many_of_the_memories_as_published():
  model = build(ultramem_v2.get_config().model, 'config.model')
  used = accounting.describe(model, 4096)['params_active']
  assert used == pytest.approx(2.5e9, rel=0.01)
