"""The gate of a plan, with the compiler itself: what fits, what does not."""

import pytest

from configs import common
from moejax.scaling import plan
from moejax.scaling.plan import memory

pytestmark = pytest.mark.slow


def _cell(width, layers):
  config = common.base()
  layer = common.block(common.attention(width // 64), common.dense(4 * width))
  config.model = common.uniform(layer, layers, vocab=512, width=width)
  config.train.batch_size, config.train.seq_len = 4, 256
  config.train.steps = 100
  config.mesh = dict(data=4, expert=1, context=1)
  return config


def test_a_cell_that_fits_and_one_that_does_not():
  gate = plan.Compiled('v5e:2x2')
  needed, limit = gate(_cell(128, 2))
  assert 15 * 2**30 < limit < 17 * 2**30
  assert needed < limit / 50 and memory.refusal(needed, limit) is None
  # 2.1e9 parameters, of which each chip holds a copy and two moments in f32.
  needed, limit = gate(_cell(4096, 8))
  assert needed > 12 * 2.1e9 > limit
  assert 'GiB on each chip' in memory.refusal(needed, limit)
