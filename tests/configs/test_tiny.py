"""What the docstring of the tiny recipe promises."""

import re

import numpy as np
import pytest

from configs import tiny
from moejax import train


@pytest.mark.slow
def test_three_seeds_end_in_the_band_of_the_docstring(tmp_path):
  promise = re.search(r'loss ([\d.]+) \+- ([\d.]+)', tiny.__doc__)
  center, band = map(float, promise.groups())
  losses = []
  for seed in range(3):
    config = tiny.get_config()
    config.seed = seed
    losses.append(train.run(config, str(tmp_path / str(seed)))['loss'])
  print('validation losses:', np.round(losses, 4))
  assert np.all(np.abs(np.array(losses) - center) <= band), losses
