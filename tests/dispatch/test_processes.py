"""Two processes of two devices equal one of four."""

import jax
import numpy as np
import pytest

from tests.dispatch.test_exchange import DEFAULTS, compiled, label, load, mesh


@pytest.mark.slow
@pytest.mark.parametrize('dispatcher', DEFAULTS, ids=label)
def test_two_processes_of_two_devices_equal_one_of_four(
  dispatcher, tmp_path, two_processes
):
  kind, path = type(dispatcher).__name__, tmp_path / 'out.npz'
  two_processes('dispatch/one_of_two.py', kind, path)
  _, call = compiled(dispatcher, mesh(1, 4), 8)
  y, gradients, _ = call(*load('one_expert', 8))
  want, got = jax.tree.leaves((y, gradients)), np.load(path)
  assert len(want) == len(got.files) == 6
  for a, name in zip(want, got.files, strict=True):
    np.testing.assert_allclose(got[name], a, rtol=1e-5, atol=1e-6)
